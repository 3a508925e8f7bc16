#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# build.sh [NAME...]: builds the named tools of tools/go.mod into build/bin,
# once; all of them without a name. The lab needs nats-server only.
set -eu
[ $# -gt 0 ] || set -- nats-server staticcheck govulncheck controller-gen
for name; do
	case $name in
	nats-server) package=github.com/nats-io/nats-server/v2 ;;
	staticcheck) package=honnef.co/go/tools/cmd/staticcheck ;;
	govulncheck) package=golang.org/x/vuln/cmd/govulncheck ;;
	controller-gen) package=sigs.k8s.io/controller-tools/cmd/controller-gen ;;
	*) echo "test/tools: no tool named $name in tools/go.mod" >&2; exit 2 ;;
	esac
	"$(dirname "$0")/../cached-build.sh" tools '-s -w' "$package"
done
