#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# compile.sh DIR: compiles the programs of all images into DIR. The Dockerfiles
# run it in their first stage, which is the same in each of them, so that docker
# compiles once. VERSION, COMMIT and DATE are stamped into the programs.
#
# The same source and the same Go give the same bytes, and files of the same age:
# without them the layers would differ from build to build.
set -eu
out=$1
stamp=egress-gateway.io/shared/daemon
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off
mkdir -p "$out"
go build -trimpath -buildvcs=false -o "$out/" \
	-ldflags "-s -w -buildid= -X $stamp.version=${VERSION:-dev} -X $stamp.commit=${COMMIT:-} -X $stamp.date=${DATE:-}" \
	./gateway-agent ./cluster-agent ./egressctl ./images/nats/nats-server
find "$out" -exec touch -h -d @0 {} +
