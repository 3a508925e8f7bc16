// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/shared/tenant"
)

func addr(list []v1alpha1.Address) string {
	var out []string
	for _, a := range list {
		out = append(out, string(a))
	}
	return strings.Join(out, ",")
}

// The whole story of one tenant, from its label to its end.
func TestATenantsLife(t *testing.T) {
	w := newWorld(t)
	w.pool("public", "192.168.55.113-192.168.55.120", "192.168.99.13-192.168.99.20")
	w.node("node1", "10.128.0.0/23", "192.168.99.21")
	w.node("node2", "10.128.2.0/23", "192.168.99.22")
	a := w.start(nil)
	w.ask("life-blue", "public")

	blue := w.allocated("life-blue")
	if addr(blue.Spec.EgressIPs) != "192.168.55.113" || addr(blue.Spec.GatewayIPs) != "192.168.99.13" || blue.Spec.GatewayGroup != "default" {
		t.Errorf("the first tenant does not get the lowest addresses: %+v", blue.Spec)
	}
	route := w.routed("life-blue")
	ns, err := w.core.Namespaces().Get(w.ctx, "life-blue", metav1.GetOptions{})
	w.must(err)
	want := map[string]any{
		"from":     map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "life-blue"}}},
		"nextHops": map[string]any{"static": []any{map[string]any{"ip": "192.168.99.13", "bfdEnabled": false}}},
	}
	if diff := cmp.Diff(want, route.Object["spec"]); diff != "" {
		t.Errorf("route (-want +got):\n%s", diff)
	}
	if o := route.GetOwnerReferences(); len(o) != 1 || o[0].UID != ns.UID || o[0].Kind != "Namespace" || *o[0].BlockOwnerDeletion {
		t.Errorf("owner of the route: %+v", o)
	}
	var told tenant.Tenant
	w.until("the gateways to be told", func() error {
		var ok bool
		if told, ok = w.bus.told("life-blue"); !ok {
			return errors.New("they are not")
		}
		return nil
	})
	if told.UID != string(blue.UID) || told.Generation != blue.Generation || told.EgressIPs[0].String() != "192.168.55.113" {
		t.Errorf("the gateways were told %+v", told)
	}

	// Nobody has routed or programmed it: not ready, and it says what is missing.
	w.until("the condition to name the nodes that are missing", func() error {
		if m := w.condition("life-blue", v1alpha1.ConditionReady, metav1.ConditionFalse, "RoutePending"); !strings.Contains(m, "node1") {
			return errors.New(m)
		}
		return nil
	})
	w.accept("life-blue", "192.168.99.13", "node1")
	w.condition("life-blue", v1alpha1.ConditionRouteAccepted, metav1.ConditionFalse, "RoutePending")
	w.accept("life-blue", "192.168.99.13", "node1", "node2")
	w.condition("life-blue", v1alpha1.ConditionReady, metav1.ConditionFalse, "NoGateway")

	// An acknowledgement counts for the very uid and generation, by a gateway of the group.
	serve := func(group string, acked tenant.Tenant) { w.bus.serve("gw1", group, acked); a.loop.Poke() }
	other := told
	other.UID = "another"
	serve("default", other)
	w.condition("life-blue", v1alpha1.ConditionReady, metav1.ConditionFalse, "Pending")
	serve("elsewhere", told)
	w.condition("life-blue", v1alpha1.ConditionReady, metav1.ConditionFalse, "NoGateway")
	serve("default", told)
	w.condition("life-blue", v1alpha1.ConditionReady, metav1.ConditionTrue, "Ready")
	if got := w.tenant("life-blue"); got.Status.Gateway != "gw1" {
		t.Errorf("gateway %q, want gw1", got.Status.Gateway)
	}

	// The end: everything goes, the addresses rest, and come back to their tenant only.
	w.unlabel("life-blue")
	w.until("everything to be gone", func() error {
		_, told := w.bus.told("life-blue")
		if w.tenant("life-blue") != nil || w.route("life-blue") != nil || told {
			return errors.New("it is not")
		}
		return nil
	})
	w.bus.change(func(b *fakeBus) { b.statuses = map[string][]tenant.Status{} })
	w.ask("life-red", "public")
	if red := w.allocated("life-red"); addr(red.Spec.EgressIPs) != "192.168.55.114" || addr(red.Spec.GatewayIPs) != "192.168.99.14" {
		t.Errorf("another tenant got %+v; the released addresses must rest", red.Spec)
	}
	w.ask("life-blue", "public")
	if blue := w.allocated("life-blue"); addr(blue.Spec.EgressIPs) != "192.168.55.113" {
		t.Errorf("the tenant came back and got %s, want its own 192.168.55.113", addr(blue.Spec.EgressIPs))
	}
	if kinds := w.audit.kinds("life-blue"); !slices.Equal(kinds[:2], []string{"alloc", "apb"}) {
		t.Errorf("a route was told before the addresses that it leads to: %v", kinds)
	}
	if n := len(w.audit.ids("alloc", "life-blue")); n != 2 {
		t.Errorf("%d allocations of life-blue in the audit, want 2", n)
	}
	if n := len(w.audit.ids("release", "life-blue")); n != 1 {
		t.Errorf("%d releases of life-blue in the audit, want 1", n)
	}
	if len(w.audit.ids("apb", "life-blue")) < 3 {
		t.Errorf("route writes in the audit: %v", w.audit.ids("apb", "life-blue"))
	}
}

// What owners get wrong has a name and a remedy, and harms nobody.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	w.pool("public", "192.168.55.113-192.168.55.114", "192.168.99.13-192.168.99.20")
	w.pool("closed", "192.168.56.0/29", "192.168.98.0/29", func(p *v1alpha1.EgressPool) { p.Spec.Disabled = true })
	w.pool("team", "192.168.57.0/29", "192.168.97.0/29", func(p *v1alpha1.EgressPool) {
		p.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
	})
	foreign := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.ovn.org/v1", "kind": "AdminPolicyBasedExternalRoute", "metadata": map[string]any{"name": "theirs"},
		"spec": map[string]any{
			"from":     map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "no-foreign"}}},
			"nextHops": map[string]any{"static": []any{map[string]any{"ip": "192.168.99.99"}}},
		},
	}}
	foreign, err := w.dynamic.Resource(routesResource()).Create(w.ctx, foreign, metav1.CreateOptions{})
	w.must(err)
	w.start(nil)
	refused := func(name, reason, mentions string) {
		t.Helper()
		if m := w.condition(name, v1alpha1.ConditionAllocated, metav1.ConditionFalse, reason); !strings.Contains(m, mentions) {
			t.Errorf("%s: message %q does not mention %q", name, m, mentions)
		}
		w.condition(name, v1alpha1.ConditionReady, metav1.ConditionFalse, reason)
		if w.route(name) != nil {
			t.Errorf("%s is refused and has a route", name)
		}
		if _, told := w.bus.told(name); told {
			t.Errorf("%s is refused and the gateways were told", name)
		}
		w.until("the audit to be told of "+name, func() error {
			if len(w.audit.ids("deny", name)) == 0 {
				return errors.New("no deny")
			}
			return nil
		})
	}
	w.ask("no-pool", "publik")
	refused("no-pool", "PoolNotFound", "public")
	w.ask("no-closed", "closed")
	refused("no-closed", "PoolDisabled", "closed")
	w.ask("no-team", "team")
	refused("no-team", "NamespaceNotAllowed", "team")
	w.ask("no-foreign", "public")
	refused("no-foreign", "OtherRouteSelectsNamespace", "theirs")
	now, err := w.dynamic.Resource(routesResource()).Get(w.ctx, "theirs", metav1.GetOptions{})
	w.must(err)
	if now.GetResourceVersion() != foreign.GetResourceVersion() {
		t.Error("the foreign route was touched")
	}
	w.namespace("no-outside", map[string]string{v1alpha1.LabelPool: "public"}, "203.0.113.7")
	refused("no-outside", "AddressNotInPool", "203.0.113.7")
	w.namespace("no-address", map[string]string{v1alpha1.LabelPool: "public"}, "192.168.55.300")
	refused("no-address", "InvalidAnnotation", "192.168.55.300")

	w.namespace("yes-exact", map[string]string{v1alpha1.LabelPool: "public"}, "192.168.55.114")
	if got := w.allocated("yes-exact"); addr(got.Spec.EgressIPs) != "192.168.55.114" {
		t.Errorf("asked for .114, got %s", addr(got.Spec.EgressIPs))
	}
	w.namespace("no-taken", map[string]string{v1alpha1.LabelPool: "public"}, "192.168.55.114")
	refused("no-taken", "AddressInUse", "yes-exact")
	w.ask("yes-last", "public")
	w.allocated("yes-last")
	w.ask("no-more", "public")
	refused("no-more", "PoolExhausted", "public")

	// The remedy works.
	w.label("no-team", "team", "a")
	w.allocated("no-team")
	w.label("no-pool", v1alpha1.LabelPool, "team")
	w.condition("no-pool", v1alpha1.ConditionAllocated, metav1.ConditionFalse, "NamespaceNotAllowed")
}

// A request that changes and can not be met leaves what works in force.
func TestWhatWorksStays(t *testing.T) {
	w := newWorld(t)
	w.pool("first", "192.168.55.113-192.168.55.114", "192.168.99.13-192.168.99.14")
	w.pool("second", "192.168.56.113-192.168.56.114", "192.168.98.13-192.168.98.14")
	w.start(nil)
	w.ask("stay", "first")
	before := w.allocated("stay")

	w.label("stay", v1alpha1.LabelPool, "thirrd")
	if m := w.condition("stay", v1alpha1.ConditionAllocated, metav1.ConditionFalse, "PoolNotFound"); !strings.Contains(m, "keeps") {
		t.Errorf("message %q does not say that the address stays", m)
	}
	if got := w.tenant("stay"); !cmp.Equal(got.Spec, before.Spec) || got.Generation != before.Generation {
		t.Errorf("the allocation changed to %+v", got.Spec)
	}
	if _, told := w.bus.told("stay"); !told || w.route("stay") == nil {
		t.Error("traffic was broken")
	}

	w.label("stay", v1alpha1.LabelPool, "second")
	w.until("the move", func() error {
		if got := w.tenant("stay"); got.Spec.Pool != "second" {
			return fmt.Errorf("pool %q", got.Spec.Pool)
		}
		return nil
	})
	w.until("the old addresses to rest", func() error {
		if q := w.getPool("first").Status.Quarantine; len(q) != 1 || q[0].Tenant != "stay" {
			return fmt.Errorf("quarantine %+v", q)
		}
		return nil
	})
	w.until("route and bus to follow", func() error {
		told, _ := w.bus.told("stay")
		hops, _, _ := unstructured.NestedSlice(w.route("stay").Object, "spec", "nextHops", "static")
		if told.Pool != "second" || hops[0].(map[string]any)["ip"] != "192.168.98.13" {
			return fmt.Errorf("told %+v, hops %v", told, hops)
		}
		return nil
	})

	// The pool shrinks: the address is kept, and the condition says so.
	_, err := w.dynamic.Resource(poolsResource()).Patch(w.ctx, "second", "application/merge-patch+json",
		[]byte(`{"spec":{"egressRanges":["192.168.56.120-192.168.56.121"]}}`), metav1.PatchOptions{})
	w.must(err)
	w.until("the condition to say so", func() error {
		got := w.tenant("stay")
		c := meta.FindStatusCondition(got.Status.Conditions, v1alpha1.ConditionAllocated)
		if addr(got.Spec.EgressIPs) != "192.168.56.113" || c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, "any more") {
			return fmt.Errorf("%s, %+v", addr(got.Spec.EgressIPs), c)
		}
		return nil
	})
}

// Somebody deletes an EgressTenant, and somebody a route: both come back as
// they were.
func TestDeletedByHand(t *testing.T) {
	w := newWorld(t)
	w.pool("public", "192.168.55.113-192.168.55.120", "192.168.99.13-192.168.99.20")
	w.start(nil)
	w.ask("hand-a", "public")
	w.allocated("hand-a")
	w.ask("hand-b", "public")
	b := w.allocated("hand-b")
	w.routed("hand-b")

	w.must(w.dynamic.Resource(tenantsResource()).Delete(w.ctx, "hand-b", metav1.DeleteOptions{}))
	w.until("the EgressTenant to come back", func() error {
		got := w.tenant("hand-b")
		if got == nil || got.UID == b.UID {
			return errors.New("it has not")
		}
		if !cmp.Equal(got.Spec, b.Spec) {
			return fmt.Errorf("it is another: %+v", got.Spec)
		}
		return nil
	})
	old := w.routed("hand-b").GetUID()
	w.must(w.dynamic.Resource(routesResource()).Delete(w.ctx, "egress-hand-b", metav1.DeleteOptions{}))
	w.until("the route to come back", func() error {
		if r := w.route("hand-b"); r == nil || r.GetUID() == old {
			return errors.New("it has not")
		}
		return nil
	})
}

// NATS is away: allocations, routes and conditions go on; when it is back, the
// gateways are told.
func TestNATSAway(t *testing.T) {
	w := newWorld(t)
	w.pool("public", "192.168.55.113-192.168.55.120", "192.168.99.13-192.168.99.20")
	w.start(nil)
	w.bus.change(func(b *fakeBus) { b.away = true })
	w.ask("away", "public")
	w.allocated("away")
	w.routed("away")
	w.condition("away", v1alpha1.ConditionProgrammed, metav1.ConditionFalse, "NATSUnavailable")
	w.bus.change(func(b *fakeBus) { b.away = false })
	w.until("the gateways to be told", func() error {
		if _, ok := w.bus.told("away"); !ok {
			return errors.New("they are not")
		}
		return nil
	})
}

// Overlaps are reported, and not allocated from; what is held stays.
func TestConflicts(t *testing.T) {
	w := newWorld(t)
	w.pool("first", "192.168.55.0/28", "192.168.99.128/28")
	w.node("node1", "10.128.0.0/23", "192.168.99.21")
	a := w.start(nil)
	w.ask("conflict-held", "first")
	held := w.allocated("conflict-held")

	w.pool("second", "192.168.55.8-192.168.55.30", "192.168.98.0/28")
	w.pool("on-node", "192.168.56.0/28", "192.168.99.16-192.168.99.31")
	w.pool("on-gateway", "192.168.55.100-192.168.55.110", "192.168.97.0/28")
	w.bus.change(func(b *fakeBus) {
		b.summaries = []tenant.Summary{{Schema: 1, Gateway: "gw1", Group: "default", Time: time.Now(), Addresses: held2addr("192.168.55.105")}}
	})
	a.loop.Poke()
	for pool, mentions := range map[string]string{"first": "second", "second": "first", "on-node": "node1", "on-gateway": "gw1"} {
		w.until("the conflict of pool "+pool, func() error {
			p := w.getPool(pool)
			c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionConflict)
			if c == nil || c.Status != metav1.ConditionTrue || !strings.Contains(c.Message, mentions) {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
		w.ask("conflict-"+pool, pool)
		w.condition("conflict-"+pool, v1alpha1.ConditionAllocated, metav1.ConditionFalse, "PoolConflict")
	}
	if got := w.tenant("conflict-held"); !cmp.Equal(got.Spec, held.Spec) {
		t.Errorf("a conflict changed an allocation: %+v", got.Spec)
	}
	w.must(w.dynamic.Resource(poolsResource()).Delete(w.ctx, "second", metav1.DeleteOptions{}))
	w.allocated("conflict-first")
}

// TestSeveralAddresses: a tenant gets as many as its pool says; the route stays
// one hop; a later change of the pool leaves it alone.
func TestSeveralAddresses(t *testing.T) {
	w := newWorld(t)
	w.node("node1", "10.128.0.0/23", "192.168.99.21")
	w.pool("several", "192.168.57.1-192.168.57.9", "192.168.98.1-192.168.98.9", func(p *v1alpha1.EgressPool) { p.Spec.AddressesPerTenant = 3 })
	w.start(nil)
	w.ask("three", "several")
	three := w.allocated("three")
	if d := cmp.Diff([]v1alpha1.Address{"192.168.57.1", "192.168.57.2", "192.168.57.3"}, three.Spec.EgressIPs); d != "" || len(three.Spec.GatewayIPs) != 1 {
		t.Errorf("%v %s", three.Spec.GatewayIPs, d)
	}
	w.routed("three")
	_, err := w.dynamic.Resource(poolsResource()).Patch(w.ctx, "several", types.MergePatchType, []byte(`{"spec":{"addressesPerTenant":2}}`), metav1.PatchOptions{})
	w.must(err)
	w.ask("two", "several")
	if two := w.allocated("two"); len(two.Spec.EgressIPs) != 2 {
		t.Errorf("two has %v", two.Spec.EgressIPs)
	}
	if now := w.tenant("three"); len(now.Spec.EgressIPs) != 3 {
		t.Errorf("three has %v after a change of the pool", now.Spec.EgressIPs)
	}
}
