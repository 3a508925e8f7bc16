// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/allocate"
	"egress-gateway.io/cluster-agent/internal/derive"
)

const (
	// batch is how many tenants get their addresses by one write of the pool, and
	// in one pass. More wait for the next one, which follows at once.
	batch = 100
	// transaction limits the time from reading a pool to the last write of an
	// EgressTenant that rests on it. It must be far below minReservation.
	transaction = 30 * time.Second
)

// errTooLate says that a transaction was interrupted for so long that what it
// read may not be true any more.
var errTooLate = errors.New("transaction took too long; it will be started again")

// allocatePool finds addresses for wants of one pool. It reserves them in the
// pool's status, and then writes the EgressTenants. What came of each want is
// noted in it.
func (p *pass) allocatePool(ctx context.Context, name string, wants []*want) error {
	started := p.now()
	ctx, cancel := context.WithTimeout(ctx, transaction)
	defer cancel()
	grants := map[string]allocate.Grant{}
	err := p.ledgers.transact(ctx, name, func(led *ledger, s *v1alpha1.EgressPoolStatus) error {
		if led.pool.Generation != p.generation(name) {
			return errNewerPool
		}
		clear(grants)
		p.reserve(led, s, wants, grants)
		return nil
	})
	switch {
	case errors.Is(err, errNewerPool), apierrors.IsNotFound(err):
		return nil // the caches will tell soon, and start the next pass
	case err != nil:
		return err
	}
	if err := p.restMoved(ctx, wants, grants); err != nil {
		return err
	}
	return p.each(ctx, wants, func(ctx context.Context, w *want) error {
		g, ok := grants[w.Name]
		if !ok {
			return nil
		}
		// The timer of ctx may fire late in a process that was frozen.
		if p.now().Sub(started) > transaction {
			return errTooLate
		}
		return p.store(ctx, w, g)
	})
}

// errNewerPool says that the pool has changed since the snapshot was taken.
var errNewerPool = errors.New("the pool has just changed")

// reserve chooses addresses and notes them, and those that are given up for
// them, in the pool's status.
func (p *pass) reserve(led *ledger, s *v1alpha1.EgressPoolStatus, wants []*want, grants map[string]allocate.Grant) {
	state := p.derived.Pools[led.pool.Name]
	pool := allocate.NewPool(led.pool.Name, state.UsableEgress, state.UsableGateway)
	take := func(list []string, use allocate.Use, tenant string) {
		for _, a := range derive.Addrs(list) {
			pool.Take(a, allocate.Taken{Use: use, Tenant: tenant})
		}
	}
	hold := func(t *v1alpha1.EgressTenant) {
		for _, a := range derive.GrantOf(t).All() {
			pool.Take(a, allocate.Taken{Use: allocate.Held, Tenant: t.Name})
		}
	}
	for _, t := range led.tenants {
		hold(t)
	}
	for _, t := range p.tenants { // the cache may know of some that are newer
		hold(t)
	}
	for _, r := range s.Reservations {
		take(r.Addresses, allocate.Reserved, r.Tenant)
	}
	for _, q := range s.Quarantine {
		take(q.Addresses, allocate.Resting, q.Tenant)
	}
	for _, w := range wants {
		w.refused = nil
	}
	for _, w := range wants {
		if len(grants) == batch {
			p.again = true
			return
		}
		req := allocate.Request{Tenant: w.Name, Egress: w.Ask, Count: state.PerTenant}
		if w.HavePool == w.Pool {
			req.Have = w.Have
		}
		grant, refusal := pool.Allocate(req)
		if refusal != nil {
			w.refused = &derive.Refusal{Reason: refusal.Reason, Message: refusal.Message}
			continue
		}
		grants[w.Name] = grant
		setReservation(s, w.Name, texts(without(grant.All(), req.Have.All())), p.time)
		if w.HavePool == w.Pool {
			rest(s, w.Name, texts(without(w.Have.All(), grant.All())), p.time)
		}
	}
}

// setReservation notes a reservation, or renews it.
func setReservation(s *v1alpha1.EgressPoolStatus, tenant string, list []string, now time.Time) {
	if len(list) == 0 {
		return
	}
	for i, r := range s.Reservations {
		if r.Tenant == tenant && slices.Equal(r.Addresses, list) {
			s.Reservations[i].Time = metav1.NewTime(now)
			return
		}
	}
	s.Reservations = append(s.Reservations, v1alpha1.Reservation{Tenant: tenant, Addresses: list, Time: metav1.NewTime(now)})
}

// rest puts addresses into quarantine. Addresses that rest after the same
// tenant already start their rest again.
func rest(s *v1alpha1.EgressPoolStatus, tenant string, list []string, now time.Time) {
	if len(list) == 0 {
		return
	}
	s.Quarantine = slices.DeleteFunc(s.Quarantine, func(q v1alpha1.Quarantined) bool {
		return q.Tenant == tenant && !slices.ContainsFunc(q.Addresses, func(a string) bool { return !slices.Contains(list, a) })
	})
	s.Quarantine = append(s.Quarantine, v1alpha1.Quarantined{Tenant: tenant, Addresses: list, ReleasedAt: metav1.NewTime(now)})
}

// restMoved puts what tenants leave behind in another pool into its quarantine.
func (p *pass) restMoved(ctx context.Context, wants []*want, grants map[string]allocate.Grant) error {
	left := map[string][]*want{}
	for _, w := range wants {
		if _, ok := grants[w.Name]; ok && w.Held() && w.HavePool != w.Pool {
			left[w.HavePool] = append(left[w.HavePool], w)
		}
	}
	for pool, movers := range left {
		err := p.ledgers.transact(ctx, pool, func(_ *ledger, s *v1alpha1.EgressPoolStatus) error {
			for _, w := range movers {
				rest(s, w.Name, texts(w.Have.All()), p.time)
			}
			return nil
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// store writes the EgressTenant of a want with the addresses of g.
func (p *pass) store(ctx context.Context, w *want, g allocate.Grant) error {
	spec := v1alpha1.EgressTenantSpec{
		Pool: w.Pool, Namespaces: w.names(), GatewayGroup: p.derived.Pools[w.Pool].Group,
		GatewayIPs: addresses(g.Gateway), EgressIPs: addresses(g.Egress),
	}
	return p.write(ctx, w, spec)
}

// write creates or updates the EgressTenant of a want, unless it is like that.
func (p *pass) write(ctx context.Context, w *want, spec v1alpha1.EgressTenantSpec) error {
	var stored *v1alpha1.EgressTenant
	var err error
	switch {
	case w.Object == nil:
		stored, err = p.Cluster.CreateTenant(ctx, &v1alpha1.EgressTenant{ObjectMeta: metav1.ObjectMeta{Name: w.Name}, Spec: spec})
	case sameSpec(w.Object.Spec, spec):
		return nil
	default:
		next := w.Object.DeepCopy()
		next.Spec = spec
		stored, err = p.Cluster.UpdateTenant(ctx, next)
	}
	if err != nil {
		// Somebody else wrote it: what we know is old.
		p.ledgers.forget(w.Pool)
		return fmt.Errorf("write EgressTenant %s: %w", w.Name, err)
	}
	p.ledgers.wrote(w.Name, stored)
	w.stored = stored
	return nil
}

func addresses(list []netip.Addr) []v1alpha1.Address {
	out := make([]v1alpha1.Address, len(list))
	for i, a := range list {
		out[i] = v1alpha1.Address(a.String())
	}
	return out
}

func sameSpec(a, b v1alpha1.EgressTenantSpec) bool {
	return a.Pool == b.Pool && a.GatewayGroup == b.GatewayGroup && slices.Equal(a.Namespaces, b.Namespaces) &&
		slices.Equal(a.GatewayIPs, b.GatewayIPs) && slices.Equal(a.EgressIPs, b.EgressIPs)
}
