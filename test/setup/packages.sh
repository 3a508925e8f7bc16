#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that the lab needs, or prints the line that does.
# Quick when nothing is missing.
set -euo pipefail

packages=(etcd-server iptables nftables conntrack iproute2 iputils-arping tcpdump procps)

if [ "$(uname -s)" != Linux ]; then
	echo "error: the lab needs Linux: it is made of network namespaces" >&2
	exit 1
fi
if ! command -v go >/dev/null; then
	echo "error: Go is missing; install Go 1.26 or later from https://go.dev/dl and put it in PATH" >&2
	exit 1
fi

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed' || missing+=("$p")
done
# Only the tests run containers. Programs count, not packages: docker's own
# packages and Debian's exclude each other.
case ${1:-} in
demo | lab-up | bench | chaos) ;;
*)
	for p in docker.io:dockerd docker-compose:docker-compose debootstrap:debootstrap systemd:systemd-analyze; do
		command -v "${p#*:}" >/dev/null || missing+=("${p%:*}")
	done
	;;
esac

if [ ${#missing[@]} -gt 0 ]; then
	line="apt-get install -y --no-install-recommends ${missing[*]}"
	if [ "$(id -u)" -ne 0 ]; then
		echo "error: packages are missing; install them with: sudo $line" >&2
		exit 1
	fi
	echo "installing: ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	log=$(mktemp)
	# etcd-server would start a service of its own; the lab starts its own etcd.
	[ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; own_policy=1; }
	if ! { apt-get update -q && $line; } >"$log" 2>&1; then
		cat "$log" >&2
		echo "error: could not install; try: $line" >&2
		[ -z "${own_policy:-}" ] || rm -f /usr/sbin/policy-rc.d
		exit 1
	fi
	[ -z "${own_policy:-}" ] || rm -f /usr/sbin/policy-rc.d
	rm -f "$log"
fi

"$(dirname "$0")/prometheus.sh"

if [ "$(id -u)" -ne 0 ]; then
	echo "error: the lab makes network namespaces and programs the kernel; run as root: sudo make ${1:-}" >&2
	exit 1
fi
