// SPDX-License-Identifier: Apache-2.0

// Package allocate chooses addresses for tenants. It is pure: what is taken
// comes in as an argument, and nothing is stored. Ranges may be as large as an
// IPv6 /64; no function enumerates one.
package allocate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/cluster-agent/internal/iprange"
	"egress-gateway.io/shared/tenant"
)

// The reasons why a request is refused.
const (
	ReasonAddressNotInPool          = "AddressNotInPool"
	ReasonAddressInUse              = "AddressInUse"
	ReasonAddressQuarantined        = "AddressQuarantined"
	ReasonPoolExhausted             = "PoolExhausted"
	ReasonGatewayAddressesExhausted = "GatewayAddressesExhausted"
)

// Refusal says why a request can not be met. Message is written for the owner of
// the namespace and names a remedy.
type Refusal struct{ Reason, Message string }

// Error returns the message.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Message }

// Use says why an address is taken.
type Use int

// The uses of an address, from the weakest to the strongest.
const (
	// Resting: a tenant gave it up a short time ago. That tenant may have it back.
	Resting Use = iota + 1
	// Reserved: an allocation is under way. Its own tenant may have it.
	Reserved
	// Held: an EgressTenant holds it.
	Held
)

// Taken is one address that is not free.
type Taken struct {
	Use    Use
	Tenant string
}

// Pool is a pool at one moment.
type Pool struct {
	Name string
	// Egress and Gateway are the ranges that may be allocated from.
	Egress, Gateway iprange.Set

	taken map[netip.Addr]Taken
	owned map[string][]netip.Addr // addresses that only their own tenant may get
	next  map[netip.Addr]netip.Addr
}

// NewPool returns a pool of which nothing is taken.
func NewPool(name string, egress, gateway iprange.Set) *Pool {
	return &Pool{
		Name: name, Egress: egress, Gateway: gateway,
		taken: map[netip.Addr]Taken{}, owned: map[string][]netip.Addr{}, next: map[netip.Addr]netip.Addr{},
	}
}

// Take marks a as taken. Of several uses the strongest counts, and the first of
// equals.
func (p *Pool) Take(a netip.Addr, t Taken) {
	if old, ok := p.taken[a]; ok && old.Use >= t.Use {
		return
	}
	p.taken[a] = t
	if t.Use != Held {
		p.owned[t.Tenant] = append(p.owned[t.Tenant], a)
	}
}

// Request is what a tenant asks for.
type Request struct {
	Tenant string
	// Egress are the exact egress addresses asked for; a family of which none is
	// given gets Count addresses (0 counts as 1), if the pool has the family.
	Egress []netip.Addr
	Count  int
	// Have is what the tenant holds from this pool. What fits the request stays.
	Have Grant
}

// Grant is what a tenant gets: IPv4 first.
type Grant struct{ Egress, Gateway []netip.Addr }

// All returns all addresses of g.
func (g Grant) All() []netip.Addr {
	return append(append([]netip.Addr(nil), g.Egress...), g.Gateway...)
}

// Allocate chooses addresses for r and marks them as reserved in p. It either
// grants all that is asked for, or nothing and returns a *Refusal.
//
// What the tenant holds is kept as long as the request allows it, also if the
// pool does not contain it any more: traffic must not break because somebody
// edits a pool. Otherwise an address comes, in this order, from the request,
// from what is reserved for the tenant or rests after it, from the lowest free.
func (p *Pool) Allocate(r Request) (Grant, *Refusal) {
	var g Grant
	for _, f := range tenant.Families() {
		if !p.Egress.Has(f) && len(f.Addrs(r.Egress)) > 0 {
			return Grant{}, p.notInPool(f.Addrs(r.Egress)[0])
		}
		if !p.Egress.Has(f) && len(f.Addrs(r.Have.Egress)) == 0 {
			continue
		}
		egress, refusal := p.egress(f, r)
		if refusal != nil {
			return Grant{}, refusal
		}
		gateway, ok := f.First(r.Have.Gateway)
		if !ok {
			gateway, ok = p.any(p.Gateway, f, r.Tenant, nil)
		}
		if !ok {
			return Grant{}, p.exhausted(p.Gateway, f, ReasonGatewayAddressesExhausted, "gateway")
		}
		g.Egress, g.Gateway = append(g.Egress, egress...), append(g.Gateway, gateway)
	}
	if len(g.Egress) == 0 {
		return Grant{}, p.exhausted(p.Egress, tenant.IPv4, ReasonPoolExhausted, "egress")
	}
	for _, a := range g.All() {
		p.Take(a, Taken{Use: Reserved, Tenant: r.Tenant})
	}
	return g, nil
}

// egress chooses the egress addresses of one family.
func (p *Pool) egress(f tenant.Family, r Request) ([]netip.Addr, *Refusal) {
	asked, have, count := f.Addrs(r.Egress), f.Addrs(r.Have.Egress), max(r.Count, 1)
	if len(asked) == 0 && len(have) > 0 {
		return have[:min(len(have), count)], nil
	}
	if len(asked) == 0 {
		var out []netip.Addr
		for range count {
			a, ok := p.any(p.Egress, f, r.Tenant, out)
			if !ok {
				refusal := p.exhausted(p.Egress, f, ReasonPoolExhausted, "egress")
				if len(out) > 0 {
					refusal.Message = fmt.Sprintf("the tenant needs %d addresses, of which %d are there: %s", count, len(out), refusal.Message)
				}
				return nil, refusal
			}
			out = append(out, a)
		}
		slices.SortFunc(out, netip.Addr.Compare)
		return out, nil
	}
	for _, a := range asked {
		if refusal := p.asked(a, r.Tenant, have); refusal != nil {
			return nil, refusal
		}
	}
	return asked, nil
}

// asked says why a tenant can not have the address that it asks for, or nil.
func (p *Pool) asked(a netip.Addr, name string, have []netip.Addr) *Refusal {
	for _, h := range have {
		if h == a {
			return nil
		}
	}
	if !p.Egress.Usable(a) {
		return p.notInPool(a)
	}
	t, taken := p.taken[a]
	switch {
	case !taken || t.Tenant == name:
		return nil
	case t.Use == Resting:
		return &Refusal{ReasonAddressQuarantined, fmt.Sprintf("address %s was released by tenant %q a short time ago and rests; it will be given to you when its quarantine ends, or ask for another", a, t.Tenant)}
	default:
		return &Refusal{ReasonAddressInUse, fmt.Sprintf("address %s belongs to tenant %q; ask for another, or remove the annotation to get any free one", a, t.Tenant)}
	}
}

// any returns an address of family f, but none of those in not, for a tenant that
// asks for none: one that is set aside for it, else the lowest free one.
func (p *Pool) any(set iprange.Set, f tenant.Family, name string, not []netip.Addr) (netip.Addr, bool) {
	for _, use := range []Use{Reserved, Resting} {
		for _, a := range f.Addrs(p.owned[name]) {
			if t := p.taken[a]; t.Use == use && t.Tenant == name && set.Usable(a) && !slices.Contains(not, a) {
				return a, true
			}
		}
	}
	var best netip.Addr
	for _, r := range set {
		if r.Family() != f {
			continue
		}
		if a, ok := p.lowest(r, not); ok && (!best.IsValid() || a.Less(best)) {
			best = a
		}
	}
	return best, best.IsValid()
}

// lowest returns the lowest free address of r that is not in not. It goes on
// where it ended last time: in one pool nothing becomes free again, so that a
// batch of requests walks over the taken ones once.
func (p *Pool) lowest(r iprange.Range, not []netip.Addr) (netip.Addr, bool) {
	a, ok := p.next[r.Low()]
	if !ok {
		a = r.Low()
	}
	first := true // what not holds is free for others, so the walk goes on there
	for a.IsValid() && r.Usable(a) {
		if _, taken := p.taken[a]; !taken && tenant.ValidateAddr(a) == nil {
			if first {
				p.next[r.Low()], first = a, false
			}
			if !slices.Contains(not, a) {
				return a, true
			}
		}
		a = a.Next()
	}
	if first {
		p.next[r.Low()] = a
	}
	return netip.Addr{}, false
}

func (p *Pool) notInPool(a netip.Addr) *Refusal {
	return &Refusal{ReasonAddressNotInPool, fmt.Sprintf("address %s can not be allocated from pool %q (%s); ask for another, or remove the annotation to get any free one", a, p.Name, list(p.Egress))}
}

// exhausted explains why there is no free address of family f in set.
func (p *Pool) exhausted(set iprange.Set, f tenant.Family, reason, purpose string) *Refusal {
	var held, resting int
	for a, t := range p.taken {
		if tenant.FamilyOf(a) != f || !set.Covers(a) {
			continue
		}
		if t.Use == Resting {
			resting++
		} else {
			held++
		}
	}
	return &Refusal{reason, fmt.Sprintf("pool %q has no free %s %s address (%d in use, %d resting after a release); release a tenant, wait for the quarantine to end, or ask the administrator to extend the pool", p.Name, f, purpose, held, resting)}
}

func list(set iprange.Set) string {
	texts := make([]string, len(set))
	for i, r := range set {
		texts[i] = r.String()
	}
	return strings.Join(texts, ", ")
}

// Satisfies says whether what a tenant has meets what it asks for: of each family
// that it asks addresses of, exactly these; of another, whatever it has.
func Satisfies(have Grant, asked []netip.Addr) bool {
	for _, f := range tenant.Families() {
		want, got := f.Addrs(asked), f.Addrs(have.Egress)
		if len(want) == 0 {
			continue
		}
		if len(want) != len(got) {
			return false
		}
		for _, a := range want {
			if !slices.Contains(got, a) {
				return false
			}
		}
	}
	return len(have.Egress) > 0
}
