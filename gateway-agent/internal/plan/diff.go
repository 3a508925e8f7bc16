// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// Diff returns the steps that lead from have to want, in an order in which no
// packet leaves with a wrong source at any point between, also if the agent
// dies there: have is all that the next Diff needs to know.
//
//	forward guard, exit guard            see below
//	sysctls, return routes
//	gateway IPs that go, and links       no node finds them any more
//	  that are made anew
//	what lets tenants that go, and       from here on nobody sends for them
//	  bindings that another wants, pass
//	  the exit guard
//	marks of these tenants               what is marked is translated, also what
//	                                     is on its way just now
//	their translation, and bindings      a binding of an address ends before the
//	  that another wants                 next one begins
//	connections of tenants that go, and  the old holder's connections end before
//	  of addresses that change hands     the new holder is served
//	chains and rules that come, and
//	  what the guard's maps hold of
//	  them: translation, then marks
//	links that come, still down          the NIC takes nothing for them; their
//	                                     making takes its time, and needs no
//	                                     answer to whether an address is free
//	egress IPs that come                 but see below for IPv6
//	connections of egress IPs that go, then these
//	links that go                        the kernel takes its time, 20 ms
//	the way of neighbour requests to links, then these up
//	gateway IPs of IPv4 that come, announcements
//	egress IPs of IPv6 of tenants that   a NIC takes 1 ms for each where it has
//	  are new                            thousands, and IPv4 need not wait for that
//	gateway IPs of IPv6 that come, announcements
//	the trees' branches of tenants that      the maps serve these already
//	  are new and have one address
//	what is left of that way, of chains and exit guard
//
// Where both guards have to be put back, the forward guard is the first: it takes
// iptables-restore 3 ms in each family, however many tenants there are, and the
// exit guard holds all of them, 12 ms with two and 0.1 to 0.2 s with 4,000. Where
// rules were flushed nothing is marked, and so either of them stops all.
func Diff(want, have State) []Step {
	if want.same(have) {
		return nil
	}
	return diff(want, have)
}

func diff(want, have State) []Step {
	d := differ{want: want, have: have, early: make(map[string]bool), mid: make(map[ChainID][]string), hooks: make(map[ChainID][]Hook)}
	maps.Copy(d.mid, have.Chains)
	maps.Copy(d.hooks, have.Hooks)
	d.bindings()
	d.forwardFirst()
	d.guardFirst()
	d.sysctls()
	d.routes()
	d.linksGo()
	d.disown()
	d.unmark()
	d.untranslate()
	d.unbind()
	d.tenantsGo()
	d.handOver()
	d.rulesCome()
	d.translateCome()
	d.marksCome()
	d.linksMade()
	d.egressCome(false)
	d.egressGo()
	d.linksGone()
	d.neighboursCome()
	d.linksRise()
	d.gatewaysCome(tenant.IPv4)
	d.egressCome(true)
	d.gatewaysCome(tenant.IPv6)
	d.treesCome()
	d.neighboursGo()
	d.chainsGo()
	d.guardLast()
	return d.steps
}

// differ collects steps.
type differ struct {
	want, have State
	steps      []Step
	announce   []Step
	mask       uint32
	// wantBound and haveBound are who may leave with which address.
	wantBound, haveBound map[binding]string
	inTrees              map[binding]bool // of haveBound those that the trees hold
	// owners are the tenants that wanted links belong to, by mark.
	owners map[uint32]string
	// wantMark is the mark that an egress IP will belong to.
	wantMark map[netip.Addr]uint32
	// addrs are those that are wanted, in order.
	addrs []Addr
	// present are the addresses that any link or NIC has.
	present map[netip.Addr]bool
	// mid and hooks are the chains and hooks as the steps so far leave them, early
	// the elements that are removed before rulesCome.
	mid   map[ChainID][]string
	hooks map[ChainID][]Hook
	early map[string]bool
	// late is what comes into the trees after all else.
	late []Step
	// suspended are the marks that have a binding which ends early: they are given
	// to nobody until the next one stands.
	suspended map[tenant.Family]map[uint32]bool
}

func (d *differ) add(s ...Step) { d.steps = append(d.steps, s...) }

func (d *differ) bindings() {
	d.mask = cmp.Or(d.want.MarkMask, d.have.MarkMask)
	d.wantBound, d.haveBound = d.want.bound(d.mask), d.have.bound(d.mask)
	d.inTrees = make(map[binding]bool)
	for b := range boundIn(d.have.Chains) {
		d.inTrees[b] = true
	}
	d.owners = make(map[uint32]string, len(d.want.Links))
	for _, l := range d.want.Links {
		d.owners[Mark(d.mask, l.Number)] = l.Tenant
	}
	d.wantMark = make(map[netip.Addr]uint32, len(d.wantBound))
	for b := range d.wantBound {
		d.wantMark[b.ip] = b.mark
	}
	d.addrs = sortedFunc(d.want.Addrs, compareAddr)
	d.present = make(map[netip.Addr]bool, len(d.have.Addrs))
	for a := range d.have.Addrs {
		d.present[a.IP] = true
	}
}

// endsEarly tells whether a binding of tenant id that the kernel has ends before
// others begin: another tenant is to get its address or has its mark, or it goes
// and no tree holds it.
func (d *differ) endsEarly(b binding, id string) bool {
	return d.contested(b) || d.owners[b.mark] != id || !d.inTrees[b] && d.wantBound[b] == ""
}

// contested tells whether another tenant is to get the address of b.
func (d *differ) contested(b binding) bool {
	mark, ok := d.wantMark[b.ip]
	return ok && mark != b.mark
}

func (d *differ) sysctls() {
	keys := sorted(d.want.Sysctls)
	// Forwarding last: what router advertisements told is forgotten at once.
	slices.SortStableFunc(keys, func(a, b string) int { return boolOrder(a == sysctlForward6, b == sysctlForward6) })
	for _, key := range keys {
		if v := d.want.Sysctls[key]; d.have.Sysctls[key] != v {
			d.add(SetSysctl{key, v})
		}
	}
}

func (d *differ) routes() {
	ours, wanted := make(map[netip.Prefix]bool), make(map[netip.Prefix]bool)
	for r := range d.have.Routes {
		ours[r.Dst] = true
	}
	for _, r := range sortedFunc(d.want.Routes, compareRoute) {
		wanted[r.Dst] = true
		if !d.have.Routes[r] {
			d.add(SetRoute{Route: r, Replace: ours[r.Dst]})
		}
	}
	for _, r := range sortedFunc(d.have.Routes, compareRoute) {
		// One that was replaced above is gone already.
		if !d.want.Routes[r] && !(wanted[r.Dst] && d.replaced(r)) {
			d.add(DelRoute{r})
		}
	}
}

// replaced tells whether SetRoute takes r away: the kernel replaces the first
// route to the destination. There is but one unless somebody copied our mark.
func (d *differ) replaced(r Route) bool {
	for o := range d.have.Routes {
		if o.Dst == r.Dst && (d.want.Routes[o] || compareRoute(o, r) < 0) {
			return false
		}
	}
	return true
}

// stays tells whether a link can stay; one with another MAC, parent or tenant
// has to be made anew.
func (d *differ) stays(name string) bool {
	have, want := d.have.Links[name], d.want.Links[name]
	return have.Name != "" && have.MAC == want.MAC && have.Parent == want.Parent &&
		(have.Tenant == want.Tenant || have.Tenant == "")
}

// leaves tells whether a link goes for good.
func (d *differ) leaves(name string) bool {
	_, wanted := d.want.Links[name]
	return d.have.Links[name].Name != "" && !wanted
}

func (d *differ) linksGo() {
	for _, name := range sorted(d.have.Links) {
		if !d.stays(name) && !d.leaves(name) {
			d.add(DelLink{d.have.Links[name].Tenant, name})
		}
	}
	for _, a := range sortedFunc(d.have.Addrs, compareAddr) {
		if _, wanted := d.want.Addrs[a]; wanted || !d.isLink(a.Dev) || !d.stays(a.Dev) && !d.leaves(a.Dev) {
			continue // an address goes with its link
		}
		d.add(DelAddr{d.have.Links[a.Dev].Tenant, a})
	}
}

// linksGone removes the links that go for good.
func (d *differ) linksGone() {
	for _, name := range sorted(d.have.Links) {
		if d.leaves(name) {
			d.add(DelLink{d.have.Links[name].Tenant, name})
		}
	}
}

func (d *differ) isLink(dev string) bool {
	_, have := d.have.Links[dev]
	_, want := d.want.Links[dev]
	return have || want
}

// egressCome adds the egress IPs that come, those that are late or the others.
func (d *differ) egressCome(late bool) {
	for _, a := range d.addrs {
		if _, ok := d.have.Addrs[a]; !ok && !d.isLink(a.Dev) && d.late6(a) == late {
			d.add(AddAddr{d.want.Addrs[a], a})
			d.announce = append(d.announce, AnnounceAddr{d.want.Addrs[a], a.Dev, a.IP})
		}
	}
}

// late6 tells an IPv6 egress IP of a tenant whose link is still to come. For each
// new address the kernel joins the groups of all others of the NIC anew, twice
// (ipv6_mc_up), and for each link that comes up it looks at all routes, of which
// each address is one (rt6_sync_up): both grow with the square of the tenants.
func (d *differ) late6(a Addr) bool {
	return a.IP.Is6() && !d.present[a.IP] && d.lacks(LinkName(NumberOf(d.mask, d.wantMark[a.IP])))
}

// egressGo ends the connections of an address before it goes: kept, they would
// go on to leave with it.
func (d *differ) egressGo() {
	of := make(map[netip.Addr]string)
	for b, t := range d.haveBound {
		of[b.ip] = t
	}
	var gone []Addr
	for _, a := range sortedFunc(d.have.Addrs, compareAddr) {
		if _, wanted := d.want.Addrs[a]; !wanted && !d.isLink(a.Dev) {
			gone = append(gone, a)
		}
	}
	for _, a := range gone {
		if _, elsewhere := d.wantMark[a.IP]; !elsewhere {
			d.add(DeleteEgressFlows{Of: of[a.IP], Egress: a.IP})
		}
	}
	for _, a := range gone {
		d.add(DelAddr{of[a.IP], a})
	}
}

// linksMade makes the links that come, or mends those that are half-made.
func (d *differ) linksMade() {
	for _, name := range sorted(d.want.Links) {
		if d.lacks(name) {
			d.add(MakeLink{d.want.Links[name]})
		}
	}
}

func (d *differ) linksRise() {
	for _, name := range sorted(d.want.Links) {
		if d.lacks(name) {
			d.add(RaiseLink{d.want.Links[name].Tenant, name})
		}
	}
}

// lacks tells whether a wanted link is not there as it should be.
func (d *differ) lacks(name string) bool {
	return !d.stays(name) || d.have.Links[name] != d.want.Links[name]
}

// gatewaysCome adds the gateway IPs of a family that come, and announces what has
// come until then.
func (d *differ) gatewaysCome(f tenant.Family) {
	for _, a := range d.addrs {
		_, have := d.have.Addrs[a]
		if tenant.FamilyOf(a.IP) == f && d.isLink(a.Dev) && !(have && d.stays(a.Dev)) {
			d.add(AddAddr{d.want.Addrs[a], a})
			d.announce = append(d.announce, AnnounceAddr{d.want.Addrs[a], a.Dev, a.IP})
		}
	}
	d.add(d.announce...)
	d.announce = nil
}

// boolOrder sorts false before true.
func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func compareRoute(a, b Route) int {
	return cmp.Or(a.Dst.Addr().Compare(b.Dst.Addr()), cmp.Compare(a.Dst.Bits(), b.Dst.Bits()), a.Via.Compare(b.Via), cmp.Compare(a.Dev, b.Dev))
}

func compareAddr(a, b Addr) int {
	return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.IP.Compare(b.IP))
}

func compareChain(a, b ChainID) int {
	return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Name, b.Name))
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sortedFunc[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), compare)
}
