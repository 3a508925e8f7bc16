#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes what is made from the API types: the CRDs and the deep copies.
set -euo pipefail
cd "$(dirname "$0")/../.."
test/tools/build.sh controller-gen
build/bin/controller-gen object paths=./cluster-agent/internal/kube/ovn
build/bin/controller-gen object paths=./cluster-agent/api/... crd output:crd:dir=deploy/crds
