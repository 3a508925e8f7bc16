// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// refused waits until a tenant says that it is not allocated, for this reason,
// in a message that names what is wrong.
func (w *world) refused(name, reason, names string) {
	w.t.Helper()
	t, err := w.WaitTenant(w.ctx, name, soon, "to be refused for "+reason, func(t scenario.Tenant) bool {
		c := t.Condition("Allocated")
		return c.Status == metav1.ConditionFalse && c.Reason == reason
	})
	if err != nil {
		w.t.Error(err)
		return
	}
	if c := t.Condition("Allocated"); !strings.Contains(c.Message, names) {
		w.t.Errorf("%s: the message %q does not name %q", name, c.Message, names)
	}
	if c := t.Condition("Ready"); c.Status != metav1.ConditionFalse || c.Reason == "" || c.Message == "" {
		w.t.Errorf("%s: Ready is %s, reason %q, message %q; want False and why", name, c.Status, c.Reason, c.Message)
	}
	w.until("an Event on the namespace "+name, func() (bool, error) {
		events, err := w.Core.EventsV1().Events("").List(w.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, e := range events.Items {
			if e.Regarding.Kind == "Namespace" && e.Regarding.Name == name && e.Reason == reason {
				return true, nil
			}
		}
		return false, nil
	})
	if _, _, found, err := w.Route(w.ctx, name); err != nil || found {
		w.t.Errorf("%s: a refused tenant has an APB (error %v)", name, err)
	}
}

// ask creates a namespace that requests from a pool, with an annotation.
func (w *world) ask(name, pool, addresses string) {
	w.t.Helper()
	var annotations map[string]string
	if addresses != "" {
		annotations = map[string]string{scenario.AnnotationEgressIPs: addresses}
	}
	w.must(w.CreateNamespace(w.ctx, name, map[string]string{scenario.LabelPool: pool}, annotations))
}

// Proof 9, what users write: each mistake has a name, where its author looks,
// and harms nobody else.
func TestBadInputFromUsers(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	w.must(w.CreatePool(w.ctx, scenario.Pool{Name: "small", EgressRanges: []string{"192.168.55.200-192.168.55.200"}, GatewayRanges: []string{"192.168.99.200-192.168.99.201"}}))
	good := w.tenant("good", "public")
	p := w.pod("node1", "good")
	w.seenAs(p, good)
	flow := w.udp(p)

	w.ask("unknown-pool", "publik", "")
	w.refused("unknown-pool", "PoolNotFound", "publik")
	w.ask("outside", "public", "203.0.113.77")
	w.refused("outside", "AddressNotInPool", "203.0.113.77")
	w.ask("taken", "public", good.EgressIP().String())
	w.refused("taken", "AddressInUse", good.EgressIP().String())
	w.ask("malformed", "public", "192.168.55.300")
	w.refused("malformed", "InvalidAnnotation", "192.168.55.300")
	w.tenant("fits", "small")
	w.ask("exhausted", "small", "")
	w.refused("exhausted", "PoolExhausted", "small")

	t.Run("the remedy works", func(t *testing.T) {
		w.must(w.Label(w.ctx, "unknown-pool", "public"))
		w.must(w.Annotate(w.ctx, "outside", "192.168.55.119"))
		w.ready("unknown-pool")
		if outside := w.ready("outside"); outside.EgressIP().String() != "192.168.55.119" {
			t.Errorf("asked for 192.168.55.119: %s", outside.Why())
		}
	})
	t.Run("an APB of somebody else keeps the namespace, and is left alone", func(t *testing.T) {
		w.must(w.AddNamespace(w.ctx, "foreign"))
		w.must(w.Create(w.ctx, scenario.Routes, map[string]any{
			"apiVersion": "k8s.ovn.org/v1", "kind": "AdminPolicyBasedExternalRoute", "metadata": map[string]any{"name": "theirs"},
			"spec": map[string]any{
				"from":     map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "foreign"}}},
				"nextHops": map[string]any{"static": []any{map[string]any{"ip": "192.168.99.99"}}},
			}}))
		w.must(w.Label(w.ctx, "foreign", "public"))
		w.refused("foreign", "OtherRouteSelectsNamespace", "theirs")
	})
	t.Run("an EgressIP keeps the namespace", func(t *testing.T) {
		w.must(w.AddNamespace(w.ctx, "egressip"))
		w.must(w.Create(w.ctx, scenario.EgressIPs, map[string]any{
			"apiVersion": "k8s.ovn.org/v1", "kind": "EgressIP", "metadata": map[string]any{"name": "their-ip"},
			"spec": map[string]any{
				"egressIPs":         []any{"192.168.99.98"},
				"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "egressip"}},
			}}))
		w.must(w.Label(w.ctx, "egressip", "public"))
		w.refused("egressip", "EgressIPSelectsNamespace", "their-ip")
	})
	t.Run("a malformed node annotation keeps the node's route", func(t *testing.T) {
		n, _ := w.Node("node2")
		w.routeWithin(n.Subnet, n.Address)
		_, err := w.Core.CoreV1().Nodes().Patch(w.ctx, "node2", types.MergePatchType,
			[]byte(`{"metadata":{"annotations":{"k8s.ovn.org/node-subnets":"{\"default\":[\"10.128.2.0\"]}"}}}`), metav1.PatchOptions{})
		w.must(err)
		w.logged("cluster-agent", "10.128.2.0")
		w.seenAs(w.pod("node2", "good"), good)
	})
	w.unharmed("the good tenant's flow", flow, good)
}

// Proof 9, what stands on the bus: records that this version does not know,
// and garbage.
func TestGarbageOnTheBus(t *testing.T) {
	w := newWorld(t)
	flows := w.twoTenants()
	js, done := w.jetstream()
	defer done()
	kv, err := js.KeyValue(w.ctx, "egress-state")
	w.must(err)

	// The writer corrects what it finds; so it must not be there for a moment.
	w.must(w.Process("cluster-agent").Signal(os.Interrupt))
	w.must(w.Process("cluster-agent").Wait())

	for key, value := range map[string]string{
		"lab.tenant.future":   `{"schema":99,"cluster":"lab","name":"future"}`,
		"lab.tenant.ns-blue":  `not JSON at all`,
		"lab.node.node1":      `{"schema":1,"cluster":"lab","name":"node1","subnets":["0.0.0.0/0"],"addresses":["192.168.99.21"]}`,
		"garbage":             "\x00\xff",
		"lab.what.is-this":    "{}",
		"other.tenant.orphan": `{"schema":1,"cluster":"other","name":"orphan","uid":"u","generation":1,"group":"default","gatewayIPs":["192.168.99.66"],"egressIPs":["192.168.55.66"]}`,
	} {
		_, err := kv.Put(w.ctx, key, []byte(value))
		w.must(err)
	}
	w.logged(lab.GatewayAgentName, "lab.tenant.future", "99", "lab.tenant.ns-blue", "garbage")
	for _, f := range flows {
		w.answers(f.udp, 20)
	}
	w.gone("192.168.99.66", "192.168.55.66") // no ready record confirms it

	_, err = w.StartClusterAgent("cluster-agent", nil)
	w.must(err)
	w.served("afterwards")
	w.allUnharmed(flows)
}

// logged waits until an agent's log mentions all of these.
func (w *world) logged(process string, texts ...string) {
	w.t.Helper()
	w.until("the log of "+process+" to mention "+strings.Join(texts, ", "), func() (bool, error) {
		b, err := os.ReadFile(w.Process(process).LogPath)
		if err != nil {
			return false, err
		}
		for _, text := range texts {
			if !strings.Contains(string(b), text) {
				return false, nil
			}
		}
		return true, nil
	})
}
