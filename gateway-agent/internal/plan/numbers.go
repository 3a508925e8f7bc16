// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// AssignNumbers gives each tenant a number, by TenantID. A tenant keeps the
// number that it has in prev, else the one that its link shows in observed
// (State.Numbers); others get the lowest that is free. Numbers that links of
// departed tenants still show are taken last. A tenant for which no number is
// left is not in the result. Tombstones get none.
func AssignNumbers(prev, observed map[string]int, tenants []tenant.Tenant) map[string]int {
	ids := make([]string, 0, len(tenants))
	for _, t := range tenants {
		if !t.Released {
			ids = append(ids, TenantID(t.Cluster, t.Name))
		}
	}
	slices.SortFunc(ids, cmp.Compare[string])
	ids = slices.Compact(ids)

	out := make(map[string]int, len(ids))
	used := make(map[int]bool, len(ids))
	for _, known := range []map[string]int{prev, observed} {
		for _, id := range ids {
			n := known[id]
			if _, done := out[id]; !done && n >= 1 && n <= MaxNumber && !used[n] {
				out[id], used[n] = n, true
			}
		}
	}
	leaving := make(map[int]bool)
	for _, n := range observed {
		leaving[n] = !used[n]
	}
	var free []int
	for _, last := range []bool{false, true} {
		for n := 1; n <= MaxNumber; n++ {
			if !used[n] && leaving[n] == last {
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
