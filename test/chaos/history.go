// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// early is how long before the first evidence of an allocation its tenant may
// already use the address: the API server may show an EgressTenant to the
// gateway's side before it shows it to us. It loosens nothing for the tenant
// that had the address before: that right ends at an instant.
const early = time.Second

// allocation is an EgressTenant's addresses as somebody saw them.
type allocation struct {
	at         time.Time
	tenant     string
	uid        string
	generation int64
	addrs      []netip.Addr
}

// change is what the gateway itself told: from at on, the tenant leaves with
// these addresses only, or, if removed, with none.
type change struct {
	allocation
	removed bool
}

// grant is a tenant's right to an address. until is zero for as long as the
// gateway has not taken it away.
type grant struct {
	tenant      string
	addr        netip.Addr
	uid         string
	generation  int64
	from, until time.Time
}

// history is who had a right to which address, and when.
type history struct {
	byAddr map[netip.Addr][]grant // oldest first
}

// compile makes the history of what was seen allocated and of what the gateway
// told. A right begins with the earliest evidence of its allocation, and ends
// when the gateway says that it has programmed the tenant without the address,
// or removed it, or programmed another tenant with it.
func compile(seen []allocation, told []change) history {
	h := history{byAddr: map[netip.Addr][]grant{}}
	for _, g := range grants(seen, told) {
		h.byAddr[g.addr] = append(h.byAddr[g.addr], g)
	}
	told = slices.SortedFunc(slices.Values(told), func(a, b change) int { return a.at.Compare(b.at) })
	born := map[string]time.Time{} // the first sight of each tenant's uid
	for _, list := range h.byAddr {
		slices.SortStableFunc(list, func(a, b grant) int { return a.from.Compare(b.from) })
		for _, g := range list {
			if t, ok := born[g.uid]; !ok || g.from.Before(t) {
				born[g.uid] = g.from
			}
		}
	}
	for addr, list := range h.byAddr {
		for i := range list {
			list[i].until = ends(list[i], list, addr, told, born)
		}
	}
	return h
}

// grants are the distinct rights, each from its earliest evidence on. A later
// generation that keeps the address goes on with the right of the earlier one.
func grants(seen []allocation, told []change) []grant {
	all := slices.Clone(seen)
	for _, c := range told {
		if !c.removed {
			all = append(all, c.allocation)
		}
	}
	type version struct {
		uid        string
		generation int64
	}
	versions := map[version]allocation{}
	for _, a := range all {
		v := version{a.uid, a.generation}
		if known, ok := versions[v]; !ok || a.at.Before(known.at) {
			versions[v] = a
		}
	}
	sorted := make([]allocation, 0, len(versions))
	for _, a := range versions {
		sorted = append(sorted, a)
	}
	slices.SortFunc(sorted, func(a, b allocation) int {
		return cmp.Or(cmp.Compare(a.uid, b.uid), cmp.Compare(a.generation, b.generation))
	})
	var out []grant
	for i, a := range sorted {
		for _, addr := range a.addrs {
			if i > 0 && sorted[i-1].uid == a.uid && slices.Contains(sorted[i-1].addrs, addr) {
				continue
			}
			out = append(out, grant{tenant: a.tenant, addr: addr, uid: a.uid, generation: a.generation, from: a.at})
		}
	}
	return out
}

func ends(g grant, all []grant, addr netip.Addr, told []change, born map[string]time.Time) time.Time {
	for _, c := range told {
		if c.at.Before(g.from) {
			continue
		}
		has := !c.removed && slices.Contains(c.addrs, addr)
		switch {
		case c.uid == g.uid && c.removed, c.uid == g.uid && c.generation > g.generation && !has:
			return c.at
		case c.tenant == g.tenant && c.uid != g.uid && born[c.uid].After(g.from) && !has && !c.removed:
			return c.at
		case c.tenant != g.tenant && has && laterGrant(g, c, all):
			return c.at
		}
	}
	return time.Time{}
}

// laterGrant tells whether what c programmed was granted after g: an agent that
// was killed tells old news late.
func laterGrant(g grant, c change, all []grant) bool {
	return slices.ContainsFunc(all, func(o grant) bool {
		return o.uid == c.uid && o.generation <= c.generation && o.from.After(g.from)
	})
}

// entitled returns the index, among the address's grants, of the latest one that
// lets the tenant use it at an instant, or -1.
func (h history) entitled(tenant string, addr netip.Addr, at time.Time) int {
	list := h.byAddr[addr]
	for i := len(list) - 1; i >= 0; i-- {
		g := list[i]
		if g.tenant == tenant && !at.Before(g.from.Add(-early)) && (g.until.IsZero() || !at.After(g.until)) {
			return i
		}
	}
	return -1
}

// anyone tells whether any tenant may use the address at an instant.
func (h history) anyone(addr netip.Addr, at time.Time) bool {
	return slices.ContainsFunc(h.byAddr[addr], func(g grant) bool { return h.entitled(g.tenant, addr, at) >= 0 })
}
