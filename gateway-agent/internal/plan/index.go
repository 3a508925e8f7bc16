// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"net/netip"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// Index finds tenants by what a change of others may touch, without a look at
// all of them. The zero Index holds none. It is not safe for concurrent use.
type Index struct {
	tenants map[string]Numbered // by TenantID
	numbers map[int][]string    // TenantIDs by number: one, or those that a mistake gave the same
	holders map[netip.Addr]int  // how many tenants have an address
	needs6  int                 // how many need IPv6
}

// Set puts a tenant in, in place of the one with its name, or with nil takes it
// out. Tombstones count as nobody.
func (x *Index) Set(id string, t *Numbered) {
	if x.tenants == nil {
		x.tenants, x.numbers, x.holders = make(map[string]Numbered), make(map[int][]string), make(map[netip.Addr]int)
	}
	if old, known := x.tenants[id]; known {
		delete(x.tenants, id)
		x.count(old, -1)
		if left := slices.DeleteFunc(x.numbers[old.Number], func(s string) bool { return s == id }); len(left) > 0 {
			x.numbers[old.Number] = left
		} else {
			delete(x.numbers, old.Number)
		}
	}
	if t == nil || t.Released {
		return
	}
	x.tenants[id] = *t
	x.numbers[t.Number] = append(x.numbers[t.Number], id)
	x.count(*t, 1)
}

func (x *Index) count(t Numbered, by int) {
	for _, list := range [][]netip.Addr{t.GatewayIPs, t.EgressIPs} {
		for _, a := range list {
			if x.holders[a] += by; x.holders[a] == 0 {
				delete(x.holders, a)
			}
		}
	}
	if t.needsIPv6() {
		x.needs6 += by
	}
}

// of returns the tenants of changes as they are here.
func (x *Index) of(changes map[string]*Numbered) []Numbered {
	var out []Numbered
	for id := range changes {
		if t, known := x.tenants[id]; known {
			out = append(out, t)
		}
	}
	return out
}

// others returns the tenants of some leaves of the trees, but those of changes.
func (x *Index) others(leaves map[int]bool, changes map[string]*Numbered) []Numbered {
	var out []Numbered
	for leaf := range leaves {
		for n := leaf << 4; n < (leaf+1)<<4; n++ {
			for _, id := range x.numbers[n] {
				if _, changed := changes[id]; !changed {
					out = append(out, x.tenants[id])
				}
			}
		}
	}
	return out
}

// shares tells whether a tenant that is not one of mine, which all are here, has
// one of these numbers or addresses.
func (x *Index) shares(mine []Numbered, numbers map[int]bool, addresses map[netip.Addr]bool) bool {
	var own Index
	for _, t := range mine {
		own.Set(TenantID(t.Cluster, t.Name), &t)
	}
	for n := range numbers {
		if len(x.numbers[n]) > len(own.numbers[n]) {
			return true
		}
	}
	for a := range addresses {
		if x.holders[a] > own.holders[a] {
			return true
		}
	}
	return false
}

// near returns the leaves of the trees (numbers without their last digit) that
// have to be looked at whole: those of numbers, and for each of their branches
// and each family one more, which holds the branch if those become empty. Who
// has a problem may not be served, and holds nothing for sure.
func (x *Index) near(numbers map[int]bool, changes map[string]*Numbered, troubled map[string]bool) map[int]bool {
	leaves, branches := make(map[int]bool), make(map[int]bool)
	for n := range numbers {
		leaves[n>>4], branches[n>>8] = true, true
	}
	out := maps.Clone(leaves)
	for branch := range branches {
		held := make(map[tenant.Family]bool)
		for n := branch << 8; n < (branch+1)<<8; n++ {
			if leaves[n>>4] {
				continue
			}
			for _, id := range x.numbers[n] {
				if _, changed := changes[id]; changed {
					continue
				}
				if troubled[id] {
					out[n>>4] = true
					continue
				}
				for _, f := range tenant.Families() {
					if !held[f] && len(f.Addrs(x.tenants[id].GatewayIPs)) > 0 {
						held[f], out[n>>4] = true, true
					}
				}
			}
		}
	}
	return out
}
