#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of the module for the given time each.
set -euo pipefail
cd "$(dirname "$0")/../.."
time=${1:-10s}
found=0
while IFS=: read -r file target; do
	dir=$(dirname "$file")
	echo "fuzz: $dir $target for $time"
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$dir"
	found=$((found + 1))
done < <(grep -rHoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sed -E 's|^\./||; s/func //')
[ "$found" -gt 0 ] || { echo "fuzz: no targets found" >&2; exit 1; }
echo "fuzz: $found targets, no failure"
