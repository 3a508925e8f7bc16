// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// The maps of the guard table, for one family each. The first two hold what the trees of
// iptables hold for tenants with one address, and answer first: a lookup costs
// the same for any number of tenants, a walk through both trees 50 comparisons
// at 4,000. What they do not know, the trees do: tenants with several addresses
// and exceptions, and packets and connections with marks of somebody else, as
// nft can not set some bits of a mark by a map and leave the others.
const (
	mapLinks     = "links"     // link -> mark
	mapTranslate = "translate" // mark -> egress IP
	// Whose an address is, for the input guard.
	mapEgress   = "egress"   // egress IP -> mark
	mapGateways = "gateways" // gateway IP -> mark
)

func mapTypes() map[string]string {
	out := make(map[string]string)
	for _, f := range tenant.Families() {
		out[setName(mapLinks, f)] = "type ifname : mark;"
		out[setName(mapTranslate, f)] = fmt.Sprintf("type mark : ipv%d_addr;", f)
		out[setName(mapEgress, f)] = fmt.Sprintf("type ipv%d_addr : mark;", f)
		out[setName(mapGateways, f)] = fmt.Sprintf("type ipv%d_addr : mark;", f)
	}
	return out
}

// isMap tells the maps among the sets: their elements are "key : value".
func isMap(name string) bool { _, ok := mapTypes()[name]; return ok }

func linkElement(link string, mark uint32) string { return link + " : " + markText(mark) }

func translateElement(mark uint32, ip netip.Addr) string { return markText(mark) + " : " + ip.String() }

// addressElement tells whose an address is.
func addressElement(ip netip.Addr, mark uint32) string { return ip.String() + " : " + markText(mark) }

// keyOf is the key of an element of a map.
func keyOf(element string) string {
	key, _, _ := strings.Cut(element, " : ")
	return key
}

func (d *differ) inMaps(b binding) bool {
	_, there := d.have.Guard.Sets[setName(mapTranslate, tenant.FamilyOf(b.ip))][translateElement(b.mark, b.ip)]
	return there
}

// translates tells the maps that bind marks to addresses, as leaf rules of the
// tree do.
func translates(name string) bool {
	return name == setName(mapTranslate, tenant.IPv4) || name == setName(mapTranslate, tenant.IPv6)
}

// fast adds the chains that ask the maps.
func (g *guardBuilder) fast() {
	for _, f := range tenant.Families() {
		proto := fmt.Sprintf("meta nfproto ipv%d ", f)
		g.add(GuardMark, "a tenant's link "+f.String(), proto+"meta mark 0 ct mark 0",
			"meta mark set iifname map @"+setName(mapLinks, f)+" ct mark set meta mark accept")
		saddr := ipWord(f) + " saddr "
		g.add(GuardTranslate, "node source "+f.String(), saddr+"@"+setName(setNodes, f)+" "+g.link,
			"update @"+setNodeSources+" { "+g.mark+" counter }")
		g.add(GuardTranslate, "a tenant's address "+f.String(), proto+"oifname "+g.ext,
			fmt.Sprintf("snat %s to %s map @%s", ipWord(f), g.packetMark, setName(mapTranslate, f)))
	}
	// Behind what tenants' connections leave by. Here, and not with the rest of the
	// forward guard: the kernel tells a source that its packet has no hops left, or
	// is too big, before it asks that.
	for _, f := range tenant.Families() {
		g.add(GuardMark, "spoofed connection "+f.String(), "iifname "+g.ext+" "+ipWord(f)+" saddr @"+setName(setPods, f), "counter drop")
	}
}

// idle returns g without the elements of the maps that do something at once:
// those that bind come when the connections of former holders have ended, and
// those that mark packets of links that are there when these are translated.
func (d *differ) idle(g Guard) Guard {
	sets := make(map[string]GuardSet, len(g.Sets))
	for name, set := range g.Sets {
		sets[name] = set
		switch {
		case translates(name):
			sets[name] = GuardSet{}
		case marks(name):
			sets[name] = maps.Clone(set)
			maps.DeleteFunc(sets[name], func(e, _ string) bool { return d.marksNow(name, e) })
		}
	}
	g.Sets = sets
	return g
}

// marks tells the maps that give marks.
func marks(name string) bool {
	return name == setName(mapLinks, tenant.IPv4) || name == setName(mapLinks, tenant.IPv6)
}

// marksNow tells the elements that mark packets of a link that is there.
func (d *differ) marksNow(set, element string) bool {
	if !marks(set) {
		return false
	}
	link, _, _ := strings.Cut(element, " : ")
	return d.have.Links[link].Name != ""
}

// unmark takes from the maps that mark, and from the trees, the marks of tenants
// that go, in one family or for good, and of those whose binding another tenant
// wants. That comes before any translation of theirs goes, and in other
// transactions: what is marked and new passes the forward guard, and would have
// but the exit guard before it. A packet that was marked just before is
// translated still.
func (d *differ) unmark() {
	d.suspended = make(map[tenant.Family]map[uint32]bool)
	for _, f := range tenant.Families() {
		d.suspended[f] = make(map[uint32]bool)
	}
	for b, id := range d.haveBound {
		if d.endsEarly(b, id) {
			d.suspended[tenant.FamilyOf(b.ip)][b.mark] = true
		}
	}
	for _, f := range tenant.Families() {
		set := setName(mapLinks, f)
		for _, e := range sorted(d.have.Guard.Sets[set]) {
			link, value, _ := strings.Cut(e, " : ")
			mark, _ := parseMark(value)
			if _, wanted := d.want.Guard.Sets[set][e]; !wanted || d.suspended[f][mark] {
				d.early[set+" "+e] = true
				d.add(DelElement{d.have.Links[link].Tenant, set, e})
			}
		}
	}
	d.prune(chainMTree)
}

// marked tells whether a mark is wanted in a family and nothing is in its way.
func (d *differ) marked(f tenant.Family, mark uint32) bool {
	_, wanted := d.want.Guard.Sets[setName(mapLinks, f)][linkElement(LinkName(NumberOf(d.mask, mark)), mark)]
	return wanted && !d.suspended[f][mark]
}

// untranslate takes from the maps what is no longer right, or is to be another
// tenant's, and translateCome adds what comes. The trees hold it
// before and after. What only one of both holds (trees: several addresses; maps: a
// pass ended before treesCome) and goes has its connections ended now: that keeps
// what follows out of the transaction in which the marks went.
func (d *differ) untranslate() {
	for _, b := range slices.SortedFunc(maps.Keys(d.haveBound), compareBinding) {
		if id := d.haveBound[b]; d.endsEarly(b, id) && d.inTrees[b] != d.inMaps(b) {
			d.add(DeleteEgressFlows{Of: id, Egress: b.ip})
		}
	}
	for _, set := range sorted(d.have.Guard.Sets) {
		if !translates(set) {
			continue
		}
		for _, e := range sorted(d.have.Guard.Sets[set]) {
			b := parseTranslate(e)
			id := d.haveBound[b]
			if _, wanted := d.want.Guard.Sets[set][e]; wanted && (id == "" || id == d.owners[b.mark]) {
				continue
			}
			d.early[set+" "+e] = true
			d.add(DelElement{id, set, e})
		}
	}
}

func (d *differ) translateCome() {
	for _, set := range sorted(d.want.Guard.Sets) {
		if !translates(set) {
			continue
		}
		for _, e := range sorted(d.want.Guard.Sets[set]) {
			if _, there := d.have.Guard.Sets[set][e]; !there || d.early[set+" "+e] {
				d.add(AddElement{d.want.Guard.Sets[set][e], set, e})
			}
		}
	}
}

// marksCome adds to the maps that mark what they lack: all that is marked is
// translated by now.
func (d *differ) marksCome() {
	for _, f := range tenant.Families() {
		set := setName(mapLinks, f)
		for _, e := range sorted(d.want.Guard.Sets[set]) {
			_, there := d.have.Guard.Sets[set][e]
			if early := d.early[set+" "+e]; early || !there && d.marksNow(set, e) {
				d.add(AddElement{d.want.Guard.Sets[set][e], set, e})
			}
		}
	}
}

// Translated returns the addresses that the maps translate to, by the numbers of
// the tenants, IPv4 first.
func (s State) Translated() map[int][]netip.Addr {
	out := make(map[int][]netip.Addr)
	for _, f := range tenant.Families() {
		for e := range s.Guard.Sets[setName(mapTranslate, f)] {
			if b := parseTranslate(e); b.ip.IsValid() {
				n := NumberOf(s.MarkMask, b.mark)
				out[n] = append(out[n], b.ip)
			}
		}
	}
	return out
}

// parseTranslate reads an element of such a map; of any other it is nothing.
func parseTranslate(e string) binding {
	mark, ip, _ := strings.Cut(e, " : ")
	m, ok := parseMark(mark)
	a, err := netip.ParseAddr(ip)
	if !ok || err != nil {
		return binding{}
	}
	return binding{m, a}
}
