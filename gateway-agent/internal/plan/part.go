// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// maxPart is how many tenants a change may be about that is planned by itself.
const maxPart = 8

// Part cuts a change of some tenants out of all. x holds the tenants before it,
// and changes what comes in their place, by TenantID: nil where a tenant goes.
// before and after are the whole inputs, of which the tenants are not looked at
// and nothing else differs; problems are those that the plan of before had.
//
// The inputs that it returns hold these tenants, and those that share chains
// with them. For a kernel that is as Desired(before) wants it,
//
//	Diff(Desired(will), Restrict(have, Desired(was), Desired(will)))
//
// are the steps of Diff(Desired(after), have), but it costs no look at all the
// others. ok is false where a change may concern others as well: then only the
// whole will do.
func (x *Index) Part(before, after Input, changes map[string]*Numbered, problems []Problem) (was, will Input, ok bool) {
	if len(changes) > maxPart || len(before.Spills)+len(after.Spills)+len(before.Conflicts)+len(after.Conflicts) > 0 {
		return was, will, false
	}
	troubled := make(map[string]bool)
	for _, p := range problems {
		switch p.Reason {
		case reasonTaken, reasonNumberTaken, reasonNoNumber, ReasonConflict:
			return was, will, false // what goes may have stood in their way
		}
		troubled[TenantID(p.Cluster, p.Tenant)] = true
	}
	old := x.of(changes)
	var come []Numbered
	for _, t := range changes {
		if t != nil && !t.Released {
			come = append(come, *t)
		}
	}
	numbers, addresses := make(map[int]bool), make(map[netip.Addr]bool)
	for _, t := range slices.Concat(old, come) {
		if t.Number < 1 || t.Number > MaxNumber {
			return was, will, false
		}
		numbers[t.Number] = true
		for _, a := range slices.Concat(t.GatewayIPs, t.EgressIPs) {
			addresses[a] = true
		}
	}
	if x.shares(old, numbers, addresses) {
		return was, will, false
	}
	others := x.others(x.near(numbers, changes, troubled), changes)
	rest6 := x.needs6 > needing6(old)+needing6(others)
	was, will = before, after
	was.Tenants, was.Rest6 = slices.Concat(old, others), rest6
	will.Tenants, will.Rest6 = slices.Concat(come, others), rest6
	return was, will, was.usesIPv6() == will.usesIPv6()
}

// needing6 counts the tenants that need IPv6.
func needing6(list []Numbered) (n int) {
	for _, t := range list {
		if t.needsIPv6() {
			n++
		}
	}
	return n
}

func (t Numbered) needsIPv6() bool {
	_, needs := tenant.IPv6.First(t.GatewayIPs)
	return needs && !t.Released
}

// Restrict returns what of have the states in about know of, to be compared with
// one of them. What belongs to no tenant is all in it.
func Restrict(have State, about ...State) State {
	out := have
	out.Chains, out.Links, out.Addrs = make(map[ChainID][]string), make(map[string]Link), make(map[Addr]string)
	out.Guard.Sets = make(map[string]GuardSet, len(have.Guard.Sets))
	out.Neighbours.MACs = make(map[netip.Addr]string)
	for name := range have.Guard.Sets {
		out.Guard.Sets[name] = make(GuardSet)
	}
	for _, s := range about {
		pick(out.Links, have.Links, s.Links)
		pick(out.Addrs, have.Addrs, s.Addrs)
		pick(out.Neighbours.MACs, have.Neighbours.MACs, s.Neighbours.MACs)
		for name, set := range out.Guard.Sets {
			pick(set, have.Guard.Sets[name], s.Guard.Sets[name])
		}
		for id := range s.Chains {
			if rules, there := have.Chains[id]; there {
				out.Chains[id] = restrictChain(id, rules, about)
			}
		}
	}
	return out
}

// pick copies what have holds of the keys of about.
func pick[K comparable, V any](to, have, about map[K]V) {
	for k := range about {
		if v, there := have[k]; there {
			to[k] = v
		}
	}
}

// restrictChain leaves the rules of others out of a chain that is a set.
func restrictChain(id ChainID, have []string, about []State) []string {
	if ordered(id.Name) {
		return have
	}
	var out []string
	for _, r := range have {
		if slices.ContainsFunc(about, func(s State) bool { return slices.Contains(s.Chains[id], r) }) {
			out = append(out, r)
		}
	}
	return out
}
