#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# base.sh: makes the two images that the Dockerfiles begin with, where no
# registry is in reach, and prints the directory that holds them:
#
#   base.tar     Debian, made by debootstrap and slimmed as debian:*-slim is
#   builder.tar  the same with this machine's Go and its certificate authorities
#
# Both are file systems for `docker import`. They are kept in the user's cache,
# under a hash of all that goes into them. Needs root.
set -euo pipefail

suite=bookworm
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
goroot=$(go env GOROOT)
authorities=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

key=$({ cat "${BASH_SOURCE[0]}" "$authorities"; echo "$suite"; go version; } | sha256sum | cut -c1-20)
caches=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/egress-gateway
cache=$caches/docker-base-$key
if [ -e "$cache/complete" ]; then
	echo "$cache"
	exit
fi
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -e "$cache/complete" ]; then
	began=$(date +%s)
	echo "test/docker: debootstrap $suite from $mirror" >&2
	tree=$(mktemp -d)
	trap 'rm -rf "$tree"' EXIT
	debootstrap --variant=minbase "$suite" "$tree" "$mirror" >"$cache/debootstrap.log" 2>&1 ||
		{ tail -n 20 "$cache/debootstrap.log" >&2; echo "error: debootstrap failed; is $mirror in reach? (DEBIAN_MIRROR)" >&2; exit 1; }
	# What the slim images leave out: documents, translations, what apt can fetch again.
	find "$tree/usr/share/doc" -mindepth 2 ! -name copyright ! -type d -delete
	rm -rf "$tree"/usr/share/{man,locale,info,groff,lintian,linda}/* "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*.bin \
		"$tree"/var/cache/apt/archives/*.deb "$tree"/var/log/*.log "$tree"/var/log/apt "$tree"/etc/resolv.conf "$tree"/etc/hostname
	printf 'path-exclude /usr/share/%s/*\n' doc man locale info >"$tree/etc/dpkg/dpkg.cfg.d/slim"
	echo 'path-include /usr/share/doc/*/copyright' >>"$tree/etc/dpkg/dpkg.cfg.d/slim"
	pack() { tar -C "$tree" --numeric-owner --sort=name --mtime=@0 -cf "$cache/$1" --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* .; }
	pack base.tar
	mkdir -p "$tree/etc/ssl/certs" "$tree/usr/local/go"
	cp "$authorities" "$tree/etc/ssl/certs/ca-certificates.crt"
	# Without the parts of Go's own tree that no build reads.
	tar -C "$goroot" --exclude=./test --exclude=./doc --exclude=./api --exclude='*_test.go' --exclude=testdata -cf - . | tar -C "$tree/usr/local/go" -xf -
	pack builder.tar
	touch "$cache/complete"
	echo "test/docker: bases made in $(($(date +%s) - began)) s, kept in $cache" >&2
fi
echo "$cache"
