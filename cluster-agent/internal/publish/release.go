// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
)

// restVanished puts the addresses of tenants into quarantine that were deleted
// by somebody else. If a tenant is still asked for, it gets them back at once.
func (p *pass) restVanished(ctx context.Context) error {
	byPool := map[string][]string{}
	for name, h := range p.held {
		if p.tenants[name] == nil {
			byPool[h.pool] = append(byPool[h.pool], name)
		}
	}
	var errs []error
	for pool, names := range byPool {
		slices.Sort(names)
		err := p.ledgers.transact(ctx, pool, func(_ *ledger, s *v1alpha1.EgressPoolStatus) error {
			for _, name := range names {
				rest(s, name, texts(p.held[name].grant.All()), p.time)
			}
			return nil
		})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// release takes back what nobody asks for any more: quarantine first, then the
// route, then the gateways, the EgressTenant last. A crash in between is made
// good by the next pass.
func (p *pass) release(ctx context.Context) error {
	if len(p.leaving) == 0 {
		return nil
	}
	ready, err := p.restLeaving(ctx)
	errs := []error{err}
	var mu sync.Mutex
	gone := map[string]bool{}
	errs = append(errs, inParallel(ctx, ready, func(ctx context.Context, t *v1alpha1.EgressTenant) error {
		if err := p.deleteRoute(ctx, RouteName(t.Name), dataOf(t)); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		gone[t.Name] = true
		return nil
	}))
	still := slices.DeleteFunc(slices.Clone(p.leaving), func(t *v1alpha1.EgressTenant) bool { return gone[t.Name] })
	p.tell(still)
	ready = slices.DeleteFunc(ready, func(t *v1alpha1.EgressTenant) bool { return !gone[t.Name] })
	errs = append(errs, inParallel(ctx, ready, p.deleteTenant))
	for _, t := range ready {
		delete(p.tenants, t.Name)
	}
	return errors.Join(errs...)
}

// restLeaving puts the addresses of leaving tenants into quarantine and returns
// the tenants for which that is done.
func (p *pass) restLeaving(ctx context.Context) ([]*v1alpha1.EgressTenant, error) {
	byPool := map[string][]*v1alpha1.EgressTenant{}
	for _, t := range p.leaving {
		byPool[t.Spec.Pool] = append(byPool[t.Spec.Pool], t)
	}
	var ready []*v1alpha1.EgressTenant
	var errs []error
	for _, pool := range slices.Sorted(maps.Keys(byPool)) {
		err := p.restIn(ctx, pool, byPool[pool])
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
			continue
		}
		ready = append(ready, byPool[pool]...)
	}
	return ready, errors.Join(errs...)
}

func (p *pass) restIn(ctx context.Context, pool string, list []*v1alpha1.EgressTenant) error {
	if !slices.ContainsFunc(list, func(t *v1alpha1.EgressTenant) bool { return len(t.Spec.EgressIPs) > 0 }) {
		return nil
	}
	return p.ledgers.transact(ctx, pool, func(_ *ledger, s *v1alpha1.EgressPoolStatus) error {
		for _, t := range list {
			rest(s, t.Name, texts(derive.GrantOf(t).All()), p.time)
		}
		return nil
	})
}

// deleteTenant tells of the release and deletes the EgressTenant. Told twice
// after a crash in between, it counts once.
func (p *pass) deleteTenant(ctx context.Context, t *v1alpha1.EgressTenant) error {
	if len(t.Spec.EgressIPs) > 0 {
		data := dataOf(t)
		if err := p.Audit.Emit(AuditEvent{Kind: KindRelease, Subject: "tenant/" + t.Name, ID: fmt.Sprintf("release-%s", t.UID), Data: data}); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	if err := p.Cluster.DeleteTenant(ctx, t); err != nil && !apierrors.IsNotFound(err) {
		p.ledgers.forget(t.Spec.Pool)
		return fmt.Errorf("delete EgressTenant %s: %w", t.Name, err)
	}
	p.ledgers.wrote(t.Name, nil)
	if len(t.Spec.EgressIPs) > 0 {
		p.tellMembers(t.Spec.Namespaces, false, "Released", fmt.Sprintf("released egress %s; the address rests before another tenant may get it", list(t.Spec.EgressIPs)))
	}
	return nil
}

// tellMembers sends an event to each of the namespaces that exist.
func (p *pass) tellMembers(names []string, warning bool, reason, message string) {
	for _, ns := range p.input.Namespaces {
		if slices.Contains(names, ns.Name) {
			p.Cluster.Event(derive.Event{Kind: "Namespace", Name: ns.Name, UID: ns.UID, Warning: warning, Reason: reason, Message: message})
		}
	}
}

func dataOf(t *v1alpha1.EgressTenant) AuditData {
	g := derive.GrantOf(t)
	return AuditData{
		Tenant: t.Name, UID: string(t.UID), Generation: t.Generation, Namespaces: t.Spec.Namespaces, Pool: t.Spec.Pool,
		Group: t.Spec.GatewayGroup, EgressIPs: texts(g.Egress), GatewayIPs: texts(g.Gateway),
	}
}
