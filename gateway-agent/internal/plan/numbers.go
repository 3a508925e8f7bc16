// SPDX-License-Identifier: Apache-2.0

package plan

import "slices"

// AssignNumbers gives each of the tenants in ids (TenantIDs) a number that is not
// used: the one that its link shows in observed (State.Numbers), else the lowest.
// Numbers that links of departed tenants still show are taken last. A tenant for
// which no number is left is not in the result.
func AssignNumbers(used map[int]bool, observed map[string]int, ids []string) map[string]int {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	out, taken := make(map[string]int, len(ids)), make(map[int]bool)
	for _, id := range ids {
		if n := observed[id]; n >= 1 && n <= MaxNumber && !used[n] && !taken[n] {
			out[id], taken[n] = n, true
		}
	}
	leaving := make(map[int]bool)
	for _, n := range observed {
		leaving[n] = !used[n] && !taken[n]
	}
	var free []int
	for _, last := range []bool{false, true} {
		for n := 1; n <= MaxNumber; n++ {
			if !used[n] && !taken[n] && leaving[n] == last {
				free = append(free, n)
			}
		}
	}
	for _, id := range ids {
		if _, done := out[id]; !done && len(free) > 0 {
			out[id], free = free[0], free[1:]
		}
	}
	return out
}
