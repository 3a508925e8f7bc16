// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"

	"egress-gateway.io/cluster-agent/internal/derive"
)

// reasonRouteNameTaken: a route with our tenant's name is somebody else's.
const reasonRouteNameTaken = "RouteNameTaken"

// RouteName is the name of a tenant's route.
func RouteName(tenant string) string { return "egress-" + tenant }

// applyRoutes writes the routes of all tenants that have addresses, and deletes
// those of ours that no tenant needs any more.
func (p *pass) applyRoutes(ctx context.Context) error {
	if !p.input.RouteAPI {
		return nil // the condition says so
	}
	needed := map[string]bool{}
	for _, t := range p.leaving {
		needed[RouteName(t.Name)] = true // until it is released
	}
	var change []*want
	for _, w := range p.wants {
		needed[RouteName(w.Name)] = w.serving() || w.Allocate || w.Held()
		if w.serving() && p.routeDiffers(w) {
			change = append(change, w)
		}
	}
	err := p.each(ctx, change, p.applyRoute)
	var stale []string
	for name, r := range p.routes {
		if r.Ours && !needed[name] {
			stale = append(stale, name)
		}
	}
	slices.Sort(stale)
	return errors.Join(err, inParallel(ctx, stale, func(ctx context.Context, name string) error {
		return p.deleteRoute(ctx, name, AuditData{Tenant: name[len(RouteName("")):], Reason: "Stale"})
	}))
}

// routeDiffers says whether a route has to be written. A route that is not
// ours, or that somebody else's would fight with, is left alone.
func (p *pass) routeDiffers(w *want) bool {
	r, exists := p.routes[RouteName(w.Name)]
	switch {
	case exists && !r.Ours:
		w.route = &derive.Refusal{Reason: reasonRouteNameTaken, Message: fmt.Sprintf("AdminPolicyBasedExternalRoute %q exists and was not made by this program; delete or rename it", r.Name)}
		return false
	case w.Foreign != nil:
		w.route = w.Foreign
		return false
	}
	want := routeOf(w)
	return !exists || r.BFD || r.Dynamic || !slices.Equal(r.Hops, want.Hops) ||
		!equality.Semantic.DeepEqual(r.Selector, want.Selector) || !sameOwners(r.Owners, want.Owners)
}

func routeOf(w *want) derive.WantedRoute {
	r := derive.WantedRoute{
		Name: RouteName(w.Name), Tenant: w.Name, Selector: derive.RouteSelector(w.Members),
		Hops: derive.GrantOf(w.object()).Gateway,
	}
	for _, m := range w.Members {
		r.Owners = append(r.Owners, derive.Owner{Name: m.Name, UID: m.UID})
	}
	return r
}

func sameOwners(have []string, want []derive.Owner) bool {
	if len(have) != len(want) {
		return false
	}
	for _, o := range want {
		if !slices.Contains(have, o.UID) {
			return false
		}
	}
	return true
}

func (p *pass) applyRoute(ctx context.Context, w *want) error {
	r := routeOf(w)
	version, err := p.Cluster.ApplyRoute(ctx, r)
	if err != nil {
		w.route = &derive.Refusal{Reason: derive.ReasonRouteFailed, Message: fmt.Sprintf("the route could not be written: %v", err)}
		return fmt.Errorf("apply route %s: %w", r.Name, err)
	}
	o := w.object()
	return p.Audit.Emit(AuditEvent{
		Kind: KindRoute, Subject: "tenant/" + w.Name, ID: fmt.Sprintf("apb-%s-%d-%s", o.UID, o.Generation, version),
		Data: AuditData{Tenant: w.Name, UID: string(o.UID), Generation: o.Generation, Namespaces: o.Spec.Namespaces, GatewayIPs: texts(r.Hops), Operation: "apply"},
	})
}

// deleteRoute deletes a route of ours, if it exists.
func (p *pass) deleteRoute(ctx context.Context, name string, data AuditData) error {
	r, exists := p.routes[name]
	if exists && !r.Ours {
		return nil
	}
	if err := p.Cluster.DeleteRoute(ctx, name); err != nil {
		return fmt.Errorf("delete route %s: %w", name, err)
	}
	if !exists {
		return nil
	}
	data.Operation = "delete"
	return p.Audit.Emit(AuditEvent{Kind: KindRoute, Subject: "tenant/" + data.Tenant, ID: fmt.Sprintf("apb-%s-%s-deleted", name, r.Version), Data: data})
}
