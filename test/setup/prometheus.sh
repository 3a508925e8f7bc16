#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts prometheus and promtool into build/bin: those in PATH, or else those of
# Debian's package. That is unpacked into the user's cache and not installed:
# installed, it would start a server now and at each boot.
set -euo pipefail

bin=$(cd "$(dirname "$0")/../.." && pwd)/build/bin
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/egress-gateway/prometheus-$(uname -m)
mkdir -p "$bin"

link() { for p in prometheus promtool; do [ "$(readlink "$bin/$p" 2>/dev/null)" = "$1/$p" ] || ln -sfn "$1/$p" "$bin/$p"; done; }

if own=$(command -v promtool) && [ "$own" != "$bin/promtool" ] && command -v prometheus >/dev/null; then
	link "$(dirname "$own")"
	exit
fi
if [ ! -e "$cache/complete" ]; then
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
fi
if [ ! -e "$cache/complete" ]; then
	echo "fetching prometheus and promtool (Debian's package, unpacked into $cache)"
	log=$cache/log
	cd "$cache"
	rm -rf usr ./*.deb
	apt-get -q download prometheus >"$log" 2>&1 || { apt-get -q update && apt-get -q download prometheus; } >>"$log" 2>&1 || {
		cat "$log" >&2
		echo "error: could not fetch prometheus; install it yourself: apt-get install -y --no-install-recommends prometheus" >&2
		exit 1
	}
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/prometheus ./usr/bin/promtool
	rm -f prometheus_*.deb
	touch complete
fi
link "$cache/usr/bin"
