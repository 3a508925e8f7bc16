// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"strings"
)

// extraAddresses reads `ip -o addr`: how many of the wanted IPv4 addresses are
// there, and which others are.
func extraAddresses(text string, want map[string]bool) (extra []string, found int) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		for i := range fields {
			if fields[i] != "inet" || i+1 == len(fields) {
				continue
			}
			p, err := netip.ParsePrefix(fields[i+1])
			switch {
			case err == nil && want[p.Addr().String()]:
				found++
			default:
				extra = append(extra, fields[i+1])
			}
		}
	}
	return extra, found
}

func countLines(text string) int {
	n := 0
	for range strings.Lines(text) {
		n++
	}
	return n
}
