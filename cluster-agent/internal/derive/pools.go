// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"egress-gateway.io/cluster-agent/internal/iprange"
	"egress-gateway.io/shared/tenant"
)

// Pool is the state of an EgressPool.
type Pool struct {
	Name, Group string
	Disabled    bool
	PerTenant   int // egress addresses of each family that a new tenant gets
	// Egress and Gateway are all good ranges; UsableEgress and UsableGateway
	// those that may be allocated from, which have no conflict.
	Egress, Gateway             iprange.Set
	UsableEgress, UsableGateway iprange.Set
	// Invalid says what is wrong with the pool itself, Conflicts where it is in
	// the way of something else. Both are empty for a good pool.
	Invalid   string
	Conflicts []string

	selector labels.Selector // nil selects all
	badMatch bool
}

// allows says whether the pool may be used by namespaces with these labels.
func (p Pool) allows(l map[string]string) bool {
	return !p.badMatch && (p.selector == nil || p.selector.Matches(labels.Set(l)))
}

// holder says whose an address is: a node's or a gateway's.
type holder struct {
	addr netip.Addr
	who  string
}

func derivePools(in Input, nodeAddresses []holder) map[string]Pool {
	pools := make(map[string]Pool, len(in.Pools))
	for _, obj := range in.Pools {
		p := Pool{Name: obj.Name, Group: obj.Spec.GatewayGroup, Disabled: obj.Spec.Disabled, PerTenant: int(max(obj.Spec.AddressesPerTenant, 1))}
		if p.Group == "" {
			p.Group = "default"
		}
		var err error
		if p.Egress, err = iprange.ParseSet(obj.Spec.EgressRanges); err != nil {
			p.Invalid = fmt.Sprintf("egressRanges: %v", err)
		}
		if p.Gateway, err = iprange.ParseSet(obj.Spec.GatewayRanges); err != nil {
			p.Invalid = fmt.Sprintf("gatewayRanges: %v", err)
		}
		for _, r := range p.Gateway {
			if o, ok := p.Egress.Overlapping(r); ok {
				p.Invalid = fmt.Sprintf("egress range %s and gateway range %s overlap", o, r)
			}
		}
		if obj.Spec.NamespaceSelector != nil {
			if p.selector, err = metav1.LabelSelectorAsSelector(obj.Spec.NamespaceSelector); err != nil {
				p.Invalid, p.badMatch = fmt.Sprintf("namespaceSelector: %v", err), true
			}
		}
		pools[p.Name] = p
	}
	held := slices.Clone(nodeAddresses)
	for _, g := range in.Gateways {
		for _, a := range g.Addresses {
			held = append(held, holder{a.Unmap(), fmt.Sprintf("gateway %q", g.Gateway)})
		}
	}
	markConflicts(pools, held)
	return pools
}

// claim is a range of a pool, or (pool empty) one address of a machine.
type claim struct {
	r           iprange.Range
	addr        netip.Addr
	pool, who   string
	egress      bool
	first, last netip.Addr
}

func (c claim) String() string {
	if c.pool == "" {
		return fmt.Sprintf("address %s of %s", c.addr, c.who)
	}
	return fmt.Sprintf("range %s of pool %q", c.r, c.pool)
}

// markConflicts sweeps over all claims in the order of their first addresses
// and compares each with those that are still open: near-linear as long as few
// overlap.
func markConflicts(pools map[string]Pool, held []holder) {
	conflicts := map[string][]string{}
	bad := map[string]map[string]bool{} // pool -> text of range
	note := func(c, other claim) {
		if c.pool == "" {
			return
		}
		if bad[c.pool] == nil {
			bad[c.pool] = map[string]bool{}
		}
		bad[c.pool][c.r.String()] = true
		conflicts[c.pool] = append(conflicts[c.pool], fmt.Sprintf("range %s is in conflict with %s", c.r, other))
	}
	var open []claim
	for _, c := range sortedClaims(pools, held) {
		open = slices.DeleteFunc(open, func(o claim) bool { return o.last.Less(c.first) })
		for _, o := range open {
			if o.pool != c.pool {
				note(o, c)
				note(c, o)
			}
		}
		if c.pool != "" {
			open = append(open, c)
		}
	}
	for name, p := range pools {
		good := func(set iprange.Set) iprange.Set {
			return slices.DeleteFunc(slices.Clone(set), func(r iprange.Range) bool { return bad[name][r.String()] })
		}
		p.UsableEgress, p.UsableGateway = good(p.Egress), good(p.Gateway)
		p.Conflicts = slices.Compact(slices.Sorted(slices.Values(conflicts[name])))
		pools[name] = p
	}
}

func sortedClaims(pools map[string]Pool, held []holder) []claim {
	var claims []claim
	for _, h := range held {
		claims = append(claims, claim{addr: h.addr, who: h.who, first: h.addr, last: h.addr})
	}
	for _, name := range slices.Sorted(maps.Keys(pools)) {
		for i, set := range []iprange.Set{pools[name].Egress, pools[name].Gateway} {
			for _, r := range set {
				first, last := r.Ends()
				claims = append(claims, claim{r: r, pool: name, egress: i == 0, first: first, last: last})
			}
		}
	}
	slices.SortStableFunc(claims, func(a, b claim) int {
		// Of equals the range first, so that a machine's address meets it open.
		return cmp.Or(a.first.Compare(b.first), cmp.Compare(b.pool, a.pool), cmp.Compare(a.who, b.who))
	})
	return claims
}

// refusal says why nothing new can be allocated from the pool, or nil.
func (p Pool) refusal() *Refusal {
	switch {
	case p.Disabled:
		return &Refusal{ReasonPoolDisabled, fmt.Sprintf("pool %q is disabled: it keeps its tenants but takes no new ones; request from another pool", p.Name)}
	case p.badMatch:
		return &Refusal{ReasonInvalidSelector, fmt.Sprintf("the namespaceSelector of pool %q is invalid; its administrator has to correct it (kubectl describe egp %s)", p.Name, p.Name)}
	}
	for _, f := range tenant.Families() {
		if p.Egress.Has(f) && !p.UsableEgress.Has(f) || p.Gateway.Has(f) && !p.UsableGateway.Has(f) {
			return &Refusal{ReasonPoolConflict, fmt.Sprintf("pool %q is not used: %s; its administrator has to correct the ranges", p.Name, first(p.Conflicts))}
		}
	}
	if len(p.UsableEgress) == 0 || len(p.UsableGateway) == 0 {
		return &Refusal{ReasonInvalidRange, fmt.Sprintf("pool %q has no valid ranges (%s); its administrator has to correct them", p.Name, p.Invalid)}
	}
	return nil
}

func first(list []string) string {
	if len(list) == 0 {
		return "unknown"
	}
	return list[0]
}
