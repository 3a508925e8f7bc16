#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Builds kube-apiserver, kube-controller-manager and kubectl into build/bin, once.
set -eu
SLOW='about 5 minutes on 2 cores, the first time only' \
	exec "$(dirname "$0")/../cached-build.sh" kube \
	'-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3' \
	./kube-apiserver ./kube-controller-manager ./kubectl
