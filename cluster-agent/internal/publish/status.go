// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"
	"hash/fnv"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/shared/tenant"
)

// writeStatus tells the owners: conditions on the EgressTenants, events on the
// namespaces, and the audit stream of what is new.
func (p *pass) writeStatus(ctx context.Context) error {
	statuses, connected := p.Bus.Statuses(), p.Bus.Connected()
	type change struct {
		w    *want
		o    *v1alpha1.EgressTenant
		next v1alpha1.EgressTenantStatus
	}
	var changes []change
	for _, w := range p.wants {
		o := w.object()
		if o == nil || w.undecided() {
			continue // its turn comes with a later pass
		}
		next := p.statusOf(w, o, statuses[w.Name], connected)
		if !equality.Semantic.DeepEqual(o.Status, next) {
			changes = append(changes, change{w, o, next})
		}
	}
	return inParallel(ctx, changes, func(ctx context.Context, c change) error {
		if err := p.announce(c.w, c.o, c.next); err != nil {
			return fmt.Errorf("audit of tenant %s: %w", c.w.Name, err)
		}
		if err := p.Cluster.SetTenantStatus(ctx, c.o, c.next); err != nil {
			return fmt.Errorf("status of EgressTenant %s: %w", c.w.Name, err)
		}
		return nil
	})
}

// statusOf computes the status that an EgressTenant should have.
func (p *pass) statusOf(w *want, o *v1alpha1.EgressTenant, reports []tenant.Status, connected bool) v1alpha1.EgressTenantStatus {
	next := *o.Status.DeepCopy()
	next.AuditedGeneration = o.Generation
	allocated := derive.Allocated(o.Spec, w.Want, w.why(), p.derived)
	route := p.routeVerdict(w, o)
	programmed := derive.No(derive.ReasonNotAllocated, "there is nothing to serve yet")
	gateway := ""
	if w.serving() {
		gateway, programmed = p.programmed(o, reports, connected)
	}
	ready := derive.Verdict{Status: metav1.ConditionTrue, Reason: derive.ReasonReady, Message: fmt.Sprintf("traffic leaves with %s through gateway %q", list(o.Spec.EgressIPs), gateway)}
	for _, f := range derive.Lacking(o.Spec, p.derived.Families) {
		ready.Message += fmt.Sprintf("; %s traffic does not", f)
	}
	for _, c := range []struct {
		kind string
		v    derive.Verdict
	}{{v1alpha1.ConditionAllocated, allocated}, {v1alpha1.ConditionRouteAccepted, route}, {v1alpha1.ConditionProgrammed, programmed}} {
		if c.v.Status != metav1.ConditionTrue && ready.Status == metav1.ConditionTrue {
			ready = derive.Verdict{Status: metav1.ConditionFalse, Reason: c.v.Reason, Message: c.kind + ": " + c.v.Message}
		}
		p.set(&next.Conditions, o.Generation, c.kind, c.v)
	}
	p.set(&next.Conditions, o.Generation, v1alpha1.ConditionReady, ready)
	w.ready, w.notReady = ready.Status == metav1.ConditionTrue, ready.Reason
	next.Gateway, next.Egress, next.NextHops = gateway, list(o.Spec.EgressIPs), list(o.Spec.GatewayIPs)
	return next
}

func (p *pass) set(list *[]metav1.Condition, generation int64, kind string, v derive.Verdict) {
	meta.SetStatusCondition(list, metav1.Condition{
		Type: kind, Status: v.Status, Reason: v.Reason, Message: v.Message,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(p.time),
	})
}

// routeVerdict judges the route of a tenant.
func (p *pass) routeVerdict(w *want, o *v1alpha1.EgressTenant) derive.Verdict {
	// A route that was only just written is judged as one of which no node has
	// reported yet, so that its condition need not be written twice.
	r := p.routes[RouteName(w.Name)]
	switch {
	case !w.serving():
		return derive.No(derive.ReasonNotAllocated, "there is nothing to route yet")
	case !p.input.RouteAPI:
		return derive.No(derive.ReasonRouteAPI, "this cluster does not serve AdminPolicyBasedExternalRoute (k8s.ovn.org/v1): OVN-Kubernetes with --enable-multi-external-gateway is needed")
	case w.route != nil:
		return derive.No(w.route.Reason, "%s", w.route.Message)
	}
	status := metav1.ConditionFalse
	ok, reason, message := derive.Accepted(r, derive.GrantOf(o).Gateway, p.derived.RouteNodes)
	if ok {
		status = metav1.ConditionTrue
	}
	return derive.Verdict{Status: status, Reason: reason, Message: message}
}

// programmed judges what the gateways say. While NATS is away nothing is known,
// and what was known of this very generation stays.
func (p *pass) programmed(o *v1alpha1.EgressTenant, reports []tenant.Status, connected bool) (string, derive.Verdict) {
	if connected {
		return derive.Programmed(o, reports, p.gateways)
	}
	old := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionProgrammed)
	if old != nil && old.ObservedGeneration == o.Generation && old.Status == metav1.ConditionTrue {
		return o.Status.Gateway, derive.Verdict{Status: old.Status, Reason: old.Reason, Message: old.Message}
	}
	return o.Status.Gateway, derive.No("NATSUnavailable", "generation %d will be sent to the gateways as soon as NATS is back", o.Generation)
}

// tellAllocations emits what is stored and was not told yet, ahead of what
// follows from it: the routes. The status remembers that it was told.
func (p *pass) tellAllocations() error {
	var told []*want
	var events []AuditEvent
	for _, w := range p.wants {
		if o := w.object(); o != nil && !w.undecided() && o.Status.AuditedGeneration < o.Generation && len(o.Spec.EgressIPs) > 0 {
			told, events = append(told, w), append(events, p.allocation(w, o))
		}
	}
	if len(events) == 0 {
		return nil
	}
	if err := p.Audit.Emit(events...); err != nil {
		return fmt.Errorf("allocations: %w", err)
	}
	for _, w := range told {
		w.audited = true
	}
	return nil
}

// allocation is the event of the addresses that an EgressTenant holds.
func (p *pass) allocation(w *want, o *v1alpha1.EgressTenant) AuditEvent {
	e := AuditEvent{Kind: KindAlloc, Subject: "tenant/" + w.Name, ID: fmt.Sprintf("alloc-%s-%d", o.UID, o.Generation), Data: dataOf(o)}
	e.Data.Operation = "change"
	now := derive.Allocated(o.Spec, w.Want, w.why(), p.derived)
	if now.Status == metav1.ConditionTrue && !meta.IsStatusConditionTrue(o.Status.Conditions, v1alpha1.ConditionAllocated) {
		e.Data.Operation = "allocate"
	}
	return e
}

// announce emits what the change of a status means. The status is written
// afterwards: after a crash in between everything is emitted again, with the
// same ids.
func (p *pass) announce(w *want, o *v1alpha1.EgressTenant, next v1alpha1.EgressTenantStatus) error {
	var events []AuditEvent
	if o.Status.AuditedGeneration < o.Generation && len(o.Spec.EgressIPs) > 0 {
		if !w.audited {
			events = append(events, p.allocation(w, o))
		}
		p.tellMembers(o.Spec.Namespaces, false, "Allocated", fmt.Sprintf("tenant %q leaves with %s (next hop %s, pool %q)", w.Name, list(o.Spec.EgressIPs), list(o.Spec.GatewayIPs), o.Spec.Pool))
		if c := meta.FindStatusCondition(next.Conditions, v1alpha1.ConditionAllocated); c != nil && c.Status == metav1.ConditionTrue && len(derive.Lacking(o.Spec, p.derived.Families)) > 0 {
			p.tellMembers(o.Spec.Namespaces, true, c.Reason, c.Message)
		}
	}
	if c, changed := transition(o.Status.Conditions, next.Conditions, v1alpha1.ConditionAllocated); changed && c.Status == metav1.ConditionFalse && w.why() != nil {
		e := AuditEvent{Kind: KindDeny, Subject: "tenant/" + w.Name, ID: fmt.Sprintf("deny-%s-%d-%s-%d", o.UID, o.Generation, c.Reason, c.LastTransitionTime.Unix()), Data: dataOf(o)}
		e.Data.Pool, e.Data.Reason, e.Data.Message = w.Pool, c.Reason, c.Message
		events = append(events, e)
		p.tellMembers(w.names(), true, c.Reason, c.Message)
	}
	if c, changed := transition(o.Status.Conditions, next.Conditions, v1alpha1.ConditionReady); changed && relevant(o, c) {
		e := AuditEvent{Kind: KindReady, Subject: "tenant/" + w.Name, ID: fmt.Sprintf("ready-%s-%d-%s-%d", o.UID, o.Generation, c.Reason, c.LastTransitionTime.Unix()), Data: dataOf(o)}
		e.Data.Gateway, e.Data.Operation, e.Data.Reason, e.Data.Message = next.Gateway, "not-ready", c.Reason, c.Message
		if c.Status == metav1.ConditionTrue {
			e.Data.Operation = "ready"
		}
		events = append(events, e)
		p.tellMembers(o.Spec.Namespaces, c.Status != metav1.ConditionTrue, c.Reason, c.Message)
	}
	if len(events) == 0 {
		return nil
	}
	return p.Audit.Emit(events...)
}

// transition returns the new condition and whether its status or reason differs
// from the old one's. Messages change often and mean little by themselves.
func transition(old, next []metav1.Condition, kind string) (metav1.Condition, bool) {
	b := meta.FindStatusCondition(next, kind)
	if b == nil {
		return metav1.Condition{}, false
	}
	a := meta.FindStatusCondition(old, kind)
	return *b, a == nil || a.Status != b.Status || a.Reason != b.Reason
}

// relevant says whether a change of Ready is worth telling: that it became so,
// or was so and is no more. Steps on the way there are not.
func relevant(o *v1alpha1.EgressTenant, c metav1.Condition) bool {
	return c.Status == metav1.ConditionTrue || meta.IsStatusConditionTrue(o.Status.Conditions, v1alpha1.ConditionReady)
}

// report tells of problems that belong to no EgressTenant: once each.
func (p *pass) report() {
	now := map[string]bool{}
	for _, problem := range p.derived.Problems {
		h := fnv.New64a()
		fmt.Fprint(h, problem.Message)
		id := fmt.Sprintf("deny-%s-%s-%x", problem.UID, problem.Reason, h.Sum64())
		if p.reported[id] {
			now[id] = true
			continue
		}
		p.Log.Warn("refused", "kind", problem.Kind, "name", problem.Name, "tenant", problem.Tenant, "reason", problem.Reason, "err", problem.Message)
		p.Cluster.Event(derive.Event{Kind: problem.Kind, Name: problem.Name, UID: problem.UID, Warning: true, Reason: problem.Reason, Message: problem.Message})
		data := AuditData{Tenant: problem.Tenant, Reason: problem.Reason, Message: problem.Message}
		if problem.Kind == "Namespace" {
			data.Namespaces = []string{problem.Name}
		}
		err := p.Audit.Emit(AuditEvent{Kind: KindDeny, Subject: strings.ToLower(problem.Kind) + "/" + problem.Name, ID: id, Data: data})
		if err != nil {
			p.Log.Warn("audit event not stored", "err", err)
			continue // told again next time
		}
		now[id] = true
	}
	p.reported = now
}

func list(l []v1alpha1.Address) string {
	out := make([]string, len(l))
	for i, a := range l {
		out[i] = string(a)
	}
	return strings.Join(out, ", ")
}
