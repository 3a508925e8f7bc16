// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"net/netip"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// maxPart is how many tenants a change may be about that is planned by itself.
const maxPart = 8

// Part cuts a change of some tenants out of all. before and after are the whole
// inputs, which differ in the tenants of changed (by TenantID) and in nothing
// else, and problems are those that the plan of before had.
//
// The inputs that it returns hold these tenants, and those that share chains
// with them. For a kernel that is as Desired(before) wants it,
//
//	Diff(Desired(will), Restrict(have, Desired(was), Desired(will)))
//
// are the steps of Diff(Desired(after), have), but it costs no look at all the
// others. ok is false where a change may concern others as well: then only the
// whole will do.
func Part(before, after Input, changed map[string]bool, problems []Problem) (was, will Input, ok bool) {
	if len(changed) > maxPart || len(before.Spills)+len(after.Spills)+len(before.Conflicts)+len(after.Conflicts) > 0 {
		return was, will, false
	}
	for _, p := range problems {
		switch p.Reason {
		case reasonTaken, reasonNumberTaken, reasonNoNumber, ReasonConflict:
			return was, will, false // what goes may have stood in their way
		}
	}
	troubled := make(map[string]bool)
	for _, p := range problems {
		troubled[TenantID(p.Cluster, p.Tenant)] = true
	}
	numbers, addresses := make(map[int]bool), make(map[netip.Addr]bool)
	for _, t := range slices.Concat(before.of(changed), after.of(changed)) {
		if t.Number < 1 || t.Number > MaxNumber {
			return was, will, false
		}
		numbers[t.Number] = true
		for _, a := range slices.Concat(t.GatewayIPs, t.EgressIPs) {
			addresses[a] = true
		}
	}
	for _, t := range before.Tenants {
		if !changed[TenantID(t.Cluster, t.Name)] && (numbers[t.Number] || sharesAny(t, addresses)) {
			return was, will, false
		}
	}
	near := before.near(numbers, changed, troubled)
	was, will = before.part(changed, near), after.part(changed, near)
	uses := before.usesIPv6()
	return was, will, was.usesIPv6() == uses && after.usesIPv6() == uses && will.usesIPv6() == uses
}

// of returns the tenants of changed.
func (in Input) of(changed map[string]bool) []Numbered {
	var out []Numbered
	for _, t := range in.Tenants {
		if changed[TenantID(t.Cluster, t.Name)] {
			out = append(out, t)
		}
	}
	return out
}

// part returns in with the tenants of changed, and those whose numbers lie in
// the leaves of near.
func (in Input) part(changed map[string]bool, near map[int]bool) Input {
	out := in
	out.Tenants, out.Rest6 = nil, false
	for _, t := range in.Tenants {
		if near[t.Number>>4] || changed[TenantID(t.Cluster, t.Name)] {
			out.Tenants = append(out.Tenants, t)
		} else {
			out.Rest6 = out.Rest6 || t.needsIPv6()
		}
	}
	return out
}

func sharesAny(t Numbered, taken map[netip.Addr]bool) bool {
	has := func(a netip.Addr) bool { return taken[a] }
	return slices.ContainsFunc(t.GatewayIPs, has) || slices.ContainsFunc(t.EgressIPs, has)
}

// near returns the leaves of the trees (numbers without their last digit) that
// have to be looked at whole: those of numbers, and for each of their branches
// and each family one more, which holds the branch if those become empty. Who
// has a problem may not be served, and holds nothing for sure.
func (in Input) near(numbers map[int]bool, changed, troubled map[string]bool) map[int]bool {
	type hold struct {
		branch int
		family tenant.Family
	}
	leaves, branches, held := make(map[int]bool), make(map[int]bool), make(map[hold]bool)
	for n := range numbers {
		leaves[n>>4], branches[n>>8] = true, true
	}
	out := maps.Clone(leaves)
	for _, t := range in.Tenants {
		id := TenantID(t.Cluster, t.Name)
		if t.Released || !branches[t.Number>>8] || leaves[t.Number>>4] || changed[id] {
			continue
		}
		if troubled[id] {
			out[t.Number>>4] = true
			continue
		}
		for _, f := range tenant.Families() {
			if at := (hold{t.Number >> 8, f}); !held[at] && len(f.Addrs(t.GatewayIPs)) > 0 {
				held[at], out[t.Number>>4] = true, true
			}
		}
	}
	return out
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
