// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/test/scenario"
)

// told waits until the audit holds an event of this kind about a subject.
func (w *world) told(kind, subject string) bus.AuditEvent {
	w.t.Helper()
	var found bus.AuditEvent
	w.until("the audit to tell "+kind+" of "+subject, func() (bool, error) {
		events, err := w.Audit(w.ctx)
		for _, e := range events {
			if e.Kind == kind && e.Subject == subject {
				found = e
			}
		}
		return found.Kind != "", err
	})
	return found
}

// The audit tells who held which egress IP, when, and why; also of what
// happened while NATS was away, and nothing twice.
func TestAuditTellsWhoHeldWhichAddressWhen(t *testing.T) {
	w := newWorld(t)
	start := time.Now()
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	w.ask("ns-typo", "publik", "")
	flow := w.udp(p)

	for _, kind := range []string{"alloc", "apb", "programmed"} {
		e := w.told(kind, "tenant/ns-blue")
		if e.Time.Before(start) || e.Time.After(time.Now()) {
			t.Errorf("%s is told of %s, it happened after %s", kind, e.Time, start)
		}
		if e.ID == "" || e.Source == "" || e.Type != "io.egress-gateway.v1."+kind || e.NatsSubject == "" {
			t.Errorf("%s is an incomplete CloudEvent: %+v", kind, e)
		}
	}
	if deny := w.told("deny", "tenant/ns-typo"); !slices.Contains(stringsIn(deny.Data), "PoolNotFound") {
		t.Errorf("the refusal does not tell its reason: %s", deny.Data)
	}
	w.told("connect", "gateway/gw1")

	// Everything from here on happens while nobody can be told.
	w.must(w.KillNATS())
	w.must(w.Unlabel(w.ctx, "ns-blue"))
	w.must(w.WaitGone(w.ctx, "ns-blue", soon))
	red := w.labelWithoutGateway("ns-red")
	w.must(w.StartNATS(w.ctx))
	back := time.Now()
	release := w.told("release", "tenant/ns-blue")
	alloc := w.told("alloc", "tenant/ns-red")
	w.told("removed", "tenant/ns-blue")
	w.told("conntrack-flush", "tenant/ns-blue")
	w.told("loss", "gateway/gw1")
	if !release.Time.Before(back) || !alloc.Time.Before(back) {
		t.Errorf("release at %s, allocation at %s: they happened before NATS came back at %s", release.Time, alloc.Time, back)
	}
	flow.Stop()

	events, err := w.Audit(w.ctx)
	w.must(err)
	noGapsNoDoubles(t, events)
	when := held(t, events, "ns-blue", blue.EgressIP())
	if len(when) != 2 || !when[0].Before(when[1]) {
		t.Errorf("ns-blue held %s at %v, want from an allocation to a release", blue.EgressIP(), when)
	}
	if red := held(t, events, "ns-red", red.EgressIP()); len(red) != 1 {
		t.Errorf("ns-red held its address at %v, want since one allocation", red)
	}
}

// labelWithoutGateway labels a namespace while its gateway can not be told.
func (w *world) labelWithoutGateway(namespace string) scenario.Tenant {
	w.t.Helper()
	w.must(w.AddNamespace(w.ctx, namespace))
	w.must(w.Label(w.ctx, namespace, "public"))
	t, err := w.WaitTenant(w.ctx, namespace, soon, "to be allocated", func(t scenario.Tenant) bool { return t.EgressIP().IsValid() })
	w.must(err)
	w.allow(t)
	return t
}

// held returns the times of the allocations and releases of an address by
// a tenant, as an auditor would find them.
func held(t *testing.T, events []bus.AuditEvent, tenant string, egress netip.Addr) []time.Time {
	t.Helper()
	var at []time.Time
	for _, e := range events {
		if (e.Kind == "alloc" || e.Kind == "release") && e.Subject == "tenant/"+tenant && slices.Contains(stringsIn(e.Data), egress.String()) {
			at = append(at, e.Time)
		}
	}
	return at
}

// auditIsWhole fails the test if the auditor finds that an event is missing or
// stands twice.
func (w *world) auditIsWhole() {
	w.t.Helper()
	out, err := w.AuditCommand("verify")
	if err != nil {
		w.t.Error(err)
	}
	w.t.Log(out)
}

// noGapsNoDoubles checks that each process's events are there without a gap,
// and that no event is there twice.
func noGapsNoDoubles(t *testing.T, events []bus.AuditEvent) {
	t.Helper()
	ids, last := map[string]bool{}, map[string]int{}
	for _, e := range events {
		if ids[e.ID] {
			t.Errorf("event %s is there twice", e.ID)
		}
		ids[e.ID] = true
		n, err := strconv.Atoi(e.Sequence)
		if err != nil || n <= last[e.BootID] {
			t.Errorf("event %s of process %s has sequence %q after %d", e.ID, e.BootID, e.Sequence, last[e.BootID])
		}
		if n > last[e.BootID]+1 {
			t.Errorf("process %s: events %d to %d are missing", e.BootID, last[e.BootID]+1, n-1)
		}
		last[e.BootID] = n
	}
}

// stringsIn returns every string in a JSON value.
func stringsIn(data json.RawMessage) []string {
	var v any
	if json.Unmarshal(data, &v) != nil {
		return nil
	}
	var out []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			for _, x := range v {
				walk(x)
			}
		default:
			out = append(out, fmt.Sprint(v))
		}
	}
	walk(v)
	return out
}
