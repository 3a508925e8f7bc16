// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// Desired returns the state that serves the input, and what of the input can
// not be served. It never returns half a tenant: a tenant with a problem in
// one family is left out in that family, and the guards cover it.
func Desired(in Input) (State, []Problem) {
	b := builder{in: in, claims: make(map[netip.Addr]string)}
	b.state = State{
		Sysctls:    sysctls(),
		MarkMask:   in.Host.MarkMask,
		Chains:     make(map[ChainID][]string),
		Hooks:      make(map[ChainID][]Hook),
		Links:      make(map[string]Link, len(in.Tenants)),
		Addrs:      make(map[Addr]string, 2*len(in.Tenants)),
		Routes:     make(map[Route]bool),
		Neighbours: newNeighbours(in.Host.Internal),
		Guard:      Guard{Rules: guardRules(in.Host), Sets: make(map[string]GuardSet)},
	}
	if err := checkMask(in.Host.MarkMask); err != nil {
		b.problem(Problem{Reason: "BadMarkMask", Message: err.Error()})
		return State{}, b.problems
	}
	for name := range GuardSetTypes() {
		b.state.Guard.Sets[name] = GuardSet{}
	}
	b.networks()
	b.nodes()
	b.cover()
	b.rules = make(map[tenant.Family]ruleset)
	for _, f := range tenant.Families() {
		if f == tenant.IPv6 && !b.usesIPv6() {
			continue
		}
		r := ruleset{in.Host, f, b.state.Chains, b.state.Hooks}
		r.base(f.Prefixes(b.pods), f.Addrs(b.nodeAddrs))
		b.rules[f] = r
	}
	for _, t := range b.order() {
		b.tenant(t)
	}
	return b.state, b.problems
}

// sysctls returns what has to hold before the first address exists. The first
// two keep the internal NIC from answering, and asking, for gateway IPs with
// its own MAC; strict rp_filter would not even let tenant links answer ARP, and
// a new link inherits default.
func sysctls() map[string]string {
	return map[string]string{
		"net/ipv4/conf/all/arp_ignore":    "1",
		"net/ipv4/conf/all/arp_announce":  "2",
		"net/ipv4/conf/all/rp_filter":     "2",
		"net/ipv4/conf/default/rp_filter": "2",
		"net/ipv4/ip_forward":             "1",
	}
}

// SysctlKeys returns the sysctls that plans for h may be about.
func SysctlKeys(h Host) []string {
	h.Advertised = []string{h.Internal, h.External}
	return append(sorted(sysctls()), sorted(sysctls6(h))...)
}

const sysctlForward6 = "net/ipv6/conf/all/forwarding"

// sysctls6 is what IPv6 needs besides. A machine that forwards takes no router
// advertisements unless told so, and forgets what it learned from them: a VM
// that has its addresses and its default route from there would be cut off.
// A default route from the inside would lead tenants' packets to where they
// came from.
func sysctls6(h Host) map[string]string {
	out := map[string]string{sysctlForward6: "1"}
	for _, nic := range h.Advertised {
		out[AcceptRA(nic)] = "2"
		if nic == h.Internal {
			out[AcceptRA(nic)+"_defrtr"] = "0"
		}
	}
	return out
}

// AcceptRA is the sysctl that says whether nic takes router advertisements: 0
// never, 1 unless the machine forwards, 2 always.
func AcceptRA(nic string) string { return "net/ipv6/conf/" + nic + "/accept_ra" }

// builder collects a State.
type builder struct {
	in        Input
	state     State
	problems  []Problem
	pods      []netip.Prefix // what the guards cover
	nodeAddrs []netip.Addr
	rules     map[tenant.Family]ruleset
	claims    map[netip.Addr]string // who has an address: a tenant, a node, the VM
}

func (b *builder) problem(p Problem) { b.problems = append(b.problems, p) }

// networks collects what the guards cover as a whole.
func (b *builder) networks() {
	b.pods = slices.Clone(b.in.Host.PodNetworks)
	for _, n := range b.in.Networks {
		b.pods = append(b.pods, n.PodNetworks...)
	}
	for _, a := range b.in.Host.Own {
		b.claims[a] = "the gateway VM itself"
	}
}

// nodes adds the return routes. A node's subnets and addresses are covered by
// the guards even where no route can be given.
func (b *builder) nodes() {
	nodes := slices.Clone(b.in.Nodes)
	slices.SortFunc(nodes, func(x, y tenant.Node) int {
		return cmp.Or(cmp.Compare(x.Cluster, y.Cluster), cmp.Compare(x.Name, y.Name))
	})
	taken := make(map[netip.Prefix]string)
	for _, n := range nodes {
		id := "node " + n.Cluster + "/" + n.Name
		fail := func(reason, format string, args ...any) {
			b.problem(Problem{Cluster: n.Cluster, Node: n.Name, Reason: reason, Message: fmt.Sprintf(format, args...)})
		}
		usable := make(map[tenant.Family]netip.Addr)
		for _, a := range n.Addresses {
			who, dup := b.claims[a]
			switch {
			case dup:
				fail("NodeAddressTaken", "address %s of %s belongs to %s", a, id, who)
			case !contains(b.in.Host.OnLink, a):
				b.claims[a] = id
				b.nodeAddrs = append(b.nodeAddrs, a)
				fail("NextHopNotOnLink", "address %s of %s is in no subnet of %s (%v); give the VM an address in the nodes' network, or the node an address in the VM's",
					a, id, b.in.Host.Internal, b.in.Host.OnLink)
			default:
				b.claims[a] = id
				b.nodeAddrs = append(b.nodeAddrs, a)
				usable[tenant.FamilyOf(a)] = a
			}
		}
		for _, s := range n.Subnets {
			b.pods = append(b.pods, s)
			via, ok := usable[tenant.FamilyOf(s.Addr())]
			if other := overlapping(taken, s); other != "" {
				fail("SubnetOverlap", "subnet %s of %s overlaps %s; only the latter gets a route", s, id, other)
				continue
			}
			if p, clash := overlapsAny(b.in.Host.OnLink, s); clash {
				fail("SubnetOnLink", "subnet %s of %s overlaps %s, the subnet of %s itself", s, id, p, b.in.Host.Internal)
				continue
			}
			if !ok {
				fail("NoNextHop", "subnet %s of %s has no usable node address of its family; replies to its pods are dropped", s, id)
				continue
			}
			if tenant.FamilyOf(via) == tenant.IPv6 && !b.in.Host.IPv6 {
				fail("IPv6NotSupported", "subnet %s of %s needs IPv6, which is off on this VM", s, id)
				continue
			}
			taken[s] = id
			b.state.Routes[Route{Dst: s, Via: via, Dev: b.in.Host.Internal}] = true
		}
	}
}

// cover fills the sets of the guard that do not depend on tenants.
func (b *builder) cover() {
	b.pods = aggregate(b.pods)
	for _, p := range b.pods {
		b.state.Guard.Sets[setName(setPods, tenant.FamilyOf(p.Addr()))][p.String()] = ""
	}
	slices.SortFunc(b.nodeAddrs, netip.Addr.Compare)
	for _, a := range b.nodeAddrs {
		b.state.Guard.Sets[setName(setNodes, tenant.FamilyOf(a))][a.String()] = ""
	}
}

// usesIPv6 tells whether ip6tables is needed: only then it is touched, and
// IPv6 forwarding switched on.
func (b *builder) usesIPv6() bool {
	if !b.in.Host.IPv6 {
		return false
	}
	uses := len(tenant.IPv6.Prefixes(b.pods)) > 0 || b.in.usesIPv6()
	if uses {
		maps.Copy(b.state.Sysctls, sysctls6(b.in.Host))
	}
	return uses
}

// usesIPv6 tells whether a tenant has IPv6.
func (in Input) usesIPv6() bool {
	return in.Rest6 || slices.ContainsFunc(in.Tenants, Numbered.needsIPv6)
}

// order returns the tenants in the order in which they get their addresses:
// by name, those that are merely held last.
func (b *builder) order() []Numbered {
	out := make([]Numbered, 0, len(b.in.Tenants))
	for _, t := range b.in.Tenants {
		if !t.Released {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(x, y Numbered) int {
		if x.Held != y.Held {
			if y.Held {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(x.Cluster, y.Cluster), cmp.Compare(x.Name, y.Name))
	})
	return out
}

func (b *builder) tenant(t Numbered) {
	id := TenantID(t.Cluster, t.Name)
	fail := func(reason, message string) {
		b.problem(Problem{Cluster: t.Cluster, Tenant: t.Name, Reason: reason, Message: message})
	}
	if t.Number < 1 || t.Number > MaxNumber {
		fail(reasonNoNumber, fmt.Sprintf("this VM serves %d tenants, which is all it can; move tenants to another gateway group", MaxNumber))
		return
	}
	link := Link{Name: LinkName(t.Number), Number: t.Number, Tenant: id, Parent: b.in.Host.Internal, Ready: true}
	if other, ok := b.state.Links[link.Name]; ok {
		fail(reasonNumberTaken, fmt.Sprintf("number %d belongs to tenant %s", t.Number, other.Tenant))
		return
	}
	for _, f := range tenant.Families() {
		gateway, ok := f.First(t.GatewayIPs)
		if !ok {
			continue
		}
		egress := f.Addrs(t.EgressIPs)
		if reason, message := b.refuse(f, gateway, egress); reason != "" {
			fail(reason, message)
			continue
		}
		b.serve(f, t.Number, id, gateway, egress)
		if link.MAC == "" {
			link.MAC = MAC(gateway)
		}
		link.IPv6 = f == tenant.IPv6
		b.state.Addrs[Addr{Dev: link.Name, IP: gateway}] = id
		b.state.Neighbours.MACs[gateway], b.state.Neighbours.Of[gateway] = link.MAC, id
	}
	if link.MAC != "" {
		b.state.Links[link.Name] = link
	}
}

// refuse says why a family of a tenant can not be served, if so.
func (b *builder) refuse(f tenant.Family, gateway netip.Addr, egress []netip.Addr) (reason, message string) {
	switch {
	case f == tenant.IPv6 && !b.in.Host.IPv6:
		return "IPv6NotSupported", fmt.Sprintf("the tenant has the IPv6 gateway IP %s, but IPv6 is off on this VM; its IPv6 traffic is refused", gateway)
	case len(egress) == 0:
		return "NoEgressIP", fmt.Sprintf("the tenant has the gateway IP %s, but no %s egress IP", gateway, f)
	case !contains(b.in.Host.OnLink, gateway):
		return "GatewayIPNotOnLink", fmt.Sprintf("gateway IP %s is in no subnet of %s (%v); nodes could not reach it", gateway, b.in.Host.Internal, b.in.Host.OnLink)
	}
	for _, a := range append([]netip.Addr{gateway}, egress...) {
		if who, taken := b.claims[a]; taken {
			return reasonTaken, fmt.Sprintf("address %s belongs to %s", a, who)
		}
		if mac, elsewhere := b.in.Conflicts[a]; elsewhere {
			return ReasonConflict, fmt.Sprintf("address %s is in use: the host with MAC %s answers for it; take it from that host, or leave it out of the pool; it is tried again", a, mac)
		}
		if p, inside := overlapsAny(b.pods, netip.PrefixFrom(a, a.BitLen())); inside {
			return "AddressInPodNetwork", fmt.Sprintf("address %s lies in the pod network %s", a, p)
		}
	}
	return "", ""
}

// serve adds what one family of a tenant needs, except its link.
func (b *builder) serve(f tenant.Family, number int, id string, gateway netip.Addr, egress []netip.Addr) {
	sets, mark, link := b.state.Guard.Sets, Mark(b.in.Host.MarkMask, number), LinkName(number)
	b.claims[gateway] = "tenant " + id
	sets[setName(mapGateways, f)][addressElement(gateway, mark)] = id
	for _, a := range egress {
		b.claims[a] = "tenant " + id
		b.state.Addrs[Addr{Dev: b.in.Host.External, IP: a}] = id
		sets[setName(mapEgress, f)][addressElement(a, mark)] = id
		sets[setName(setOwners, f)][ownerElement(link, mark, a)] = id
		sets[setName(setStale, f)][staleElement(mark, a)] = id
	}
	sets[setName(mapLinks, f)][linkElement(link, mark)] = id
	if len(egress) == 1 {
		sets[setName(mapTranslate, f)][translateElement(mark, egress[0])] = id
	}
	b.rules[f].tenant(number, id, egress)
	b.rules[f].spills(number, id, egress, b.in.Spills)
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

func overlapsAny(list []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	for _, q := range list {
		if q.Overlaps(p) {
			return q, true
		}
	}
	return netip.Prefix{}, false
}

// overlapping returns the owner of the prefix that p overlaps, or "".
func overlapping(taken map[netip.Prefix]string, p netip.Prefix) string {
	for q, who := range taken {
		if q.Overlaps(p) {
			return who + " (" + q.String() + ")"
		}
	}
	return ""
}
