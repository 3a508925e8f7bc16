#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# cached-build.sh MODULE LDFLAGS PACKAGE...
#
# Builds the main packages of the module in test/MODULE, and links them below
# build/bin. The binaries live in the user's cache under a hash of all that
# goes into them, so a second checkout, or `make clean`, costs nothing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
module=$1 ldflags=$2
shift 2
src=$here/$module
bin=${BIN_DIR:-$here/../build/bin}

export GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0 GOFLAGS='-trimpath -buildvcs=false'
key=$({ go version; uname -m; echo "$ldflags $*"; cat "$src/go.mod" "$src/go.sum"; find "$src" -name '*.go' -print0 | sort -z | xargs -0r cat; } |
	sha256sum | cut -c1-20)
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/egress-gateway/$module-$key

if [ ! -e "$cache/complete" ]; then
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	if ! flock -n 9; then
		echo "test/$module: another build of the same binaries is running; waiting for it" >&2
		flock 9
	fi
	if [ ! -e "$cache/complete" ]; then
		began=$(date +%s)
		n=0
		for package; do
			n=$((n + 1))
			echo "test/$module: building $package ($n of $#)${SLOW:+; $SLOW}" >&2
			(cd "$src" && go build -ldflags "$ldflags" -o "$cache/" "$package")
		done
		echo "test/$module: built in $(($(date +%s) - began)) s, kept in $cache" >&2
		touch "$cache/complete"
	fi
fi

mkdir -p "$bin"
for package; do
	# A major version such as /v2 is no part of a binary's name.
	name=$(basename "$(echo "$package" | sed 's:/v[0-9]*$::')")
	if [ "$(readlink "$bin/$name" 2>/dev/null)" != "$cache/$name" ]; then
		ln -sfn "$cache/$name" "$bin/$name"
	fi
done
