// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/shared/tenant"
)

func sameStatus(a, b *v1alpha1.EgressPoolStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// keepPools brings the status of all pools up to date: reservations that have
// done their work go, quarantines end, numbers and conditions are counted anew.
func (p *pass) keepPools(ctx context.Context) error {
	usage := p.usage()
	statuses := p.Bus.Statuses()
	var stale []*v1alpha1.EgressPool
	for _, o := range p.input.Pools {
		// The snapshot lacks what this pass wrote: look at that, if anything.
		if led := p.ledgers.peek(o.Name); led != nil {
			o = led.pool
		}
		next := o.Status.DeepCopy()
		p.keep(o, next, nil, usage[o.Name], statuses)
		if !sameStatus(&o.Status, next) {
			stale = append(stale, o)
		}
	}
	return inParallel(ctx, stale, func(ctx context.Context, o *v1alpha1.EgressPool) error {
		err := p.ledgers.transact(ctx, o.Name, func(led *ledger, s *v1alpha1.EgressPoolStatus) error {
			p.keep(led.pool, s, led, usage[o.Name], statuses)
			return nil
		})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// keep computes the status of one pool. With a ledger it judges by that who
// holds what, else by the snapshot: good enough to see that something is due.
func (p *pass) keep(o *v1alpha1.EgressPool, s *v1alpha1.EgressPoolStatus, led *ledger, used [2]int64, statuses map[string][]tenant.Status) {
	quarantine := o.Spec.Quarantine.Duration
	s.Reservations = slices.DeleteFunc(s.Reservations, func(r v1alpha1.Reservation) bool {
		t := p.tenants[r.Tenant]
		if led != nil {
			t = led.current(r.Tenant, t)
		}
		return holds(t, r.Addresses) || p.past(r.Time.Add(max(quarantine, minReservation)))
	})
	state := p.derived.Pools[o.Name]
	s.Quarantine = p.stillResting(s.Quarantine, quarantine, state, statuses)
	s.Egress = v1alpha1.Usage{Total: state.UsableEgress.Size(), Used: used[0]}
	s.Gateway = v1alpha1.Usage{Total: state.UsableGateway.Size(), Used: used[1]}
	p.countResting(s, state)
	if state.Name != "" && o.Generation == p.generation(o.Name) {
		s.ObservedGeneration = o.Generation
		ready, conflict := state.PoolVerdicts()
		p.set(&s.Conditions, o.Generation, v1alpha1.ConditionReady, ready)
		p.set(&s.Conditions, o.Generation, v1alpha1.ConditionConflict, conflict)
	}
	if len(s.Reservations) == 0 {
		s.Reservations = nil
	}
	if len(s.Quarantine) == 0 {
		s.Quarantine = nil
	}
}

// stillResting returns what of a quarantine goes on. An entry's egress addresses
// may be free before its gateway addresses are.
func (p *pass) stillResting(list []v1alpha1.Quarantined, quarantine time.Duration, state derive.Pool, statuses map[string][]tenant.Status) []v1alpha1.Quarantined {
	var still []v1alpha1.Quarantined
	for _, q := range list {
		forgotten := p.forgotten(q.Tenant, statuses[q.Tenant])
		q.Addresses = slices.DeleteFunc(slices.Clone(q.Addresses), func(text string) bool {
			rest := max(quarantine, minRest)
			if a, err := netip.ParseAddr(text); err == nil && state.Gateway.Usable(a) {
				rest = max(rest, minRouteRest)
			}
			if !p.past(q.ReleasedAt.Add(rest)) {
				return false
			}
			if !forgotten {
				p.retry(minRest)
			}
			return forgotten
		})
		if len(q.Addresses) > 0 {
			still = append(still, q)
		}
	}
	return still
}

// past says whether a time has come; if not, it makes the loop wake up then.
func (p *pass) past(t time.Time) bool {
	if p.time.Before(t) {
		p.due(t)
		return false
	}
	return true
}

func (p *pass) retry(after time.Duration) { p.due(p.time.Add(after)) }

// forgotten says whether no gateway can still be serving what the tenant gave
// up: the gateways know that it did, and none that is alive reports anything of
// the tenant but its present state.
func (p *pass) forgotten(name string, reports []tenant.Status) bool {
	if !p.Bus.Connected() || !p.sync.caughtUp() {
		return false
	}
	now := p.tenants[name]
	for _, r := range reports {
		current := now != nil && r.UID == string(now.UID) && r.Generation == now.Generation
		if !current && p.gateways[r.Gateway].Alive {
			return false
		}
	}
	return true
}

func holds(t *v1alpha1.EgressTenant, list []string) bool {
	if t == nil {
		return false
	}
	held := texts(derive.GrantOf(t).All())
	return !slices.ContainsFunc(list, func(a string) bool { return !slices.Contains(held, a) })
}

// usage counts the egress and gateway addresses that tenants hold of each pool.
func (p *pass) usage() map[string][2]int64 {
	out := map[string][2]int64{}
	for _, t := range p.tenants {
		n := out[t.Spec.Pool]
		n[0] += int64(len(t.Spec.EgressIPs))
		n[1] += int64(len(t.Spec.GatewayIPs))
		out[t.Spec.Pool] = n
	}
	return out
}

// countResting counts the addresses that are neither free nor held.
func (p *pass) countResting(s *v1alpha1.EgressPoolStatus, state derive.Pool) {
	resting := map[netip.Addr]bool{}
	add := func(owner string, list []string) {
		for _, a := range derive.Addrs(list) {
			if !holds(p.tenants[owner], []string{a.String()}) {
				resting[a] = true
			}
		}
	}
	for _, q := range s.Quarantine {
		add(q.Tenant, q.Addresses)
	}
	for _, r := range s.Reservations {
		add(r.Tenant, r.Addresses)
	}
	for a := range resting {
		if state.Egress.Usable(a) {
			s.Egress.Resting++
		} else if state.Gateway.Usable(a) {
			s.Gateway.Resting++
		}
	}
}
