// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"egress-gateway.io/shared/tenant"
)

// shown returns the series of an agent by name and labels, in the form of
// Prometheus: name{label="value",...}.
func (a *agent) shown(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := a.figures.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = value
		}
	}
	return out
}

// shows waits until a series has a value.
func (w *world) shows(a *agent, series string, value float64) {
	w.t.Helper()
	w.until(fmt.Sprintf("%s to be %v", series, value), func() error {
		all := a.shown(w.t)
		if got, ok := all[series]; !ok || got != value {
			return fmt.Errorf("it is %v (there at all: %v) among %q", got, ok, slices.Sorted(maps.Keys(all)))
		}
		return nil
	})
}

// The figures follow a tenant and its gateway, and go with the leadership.
func TestFigures(t *testing.T) {
	w := newWorld(t)
	w.pool("public", "192.168.55.113-192.168.55.120", "192.168.99.13-192.168.99.20")
	w.node("node1", "10.128.0.0/23", "192.168.99.21")
	a := w.start(nil)
	w.ask("fig-blue", "public")
	w.allocated("fig-blue")
	w.shows(a, `egress_tenant_ready{pool="public",tenant="test/fig-blue"}`, 0)
	w.shows(a, `egress_tenants_not_ready{reason="RoutePending"}`, 1)
	w.shows(a, `egress_pool_addresses{pool="public",role="gateway",state="used"}`, 1)
	w.shows(a, `egress_pool_addresses{pool="public",role="egress",state="total"}`, 8)

	var blue tenant.Tenant
	w.until("the gateways to be told", func() error {
		var ok bool
		if blue, ok = w.bus.told("fig-blue"); !ok {
			return errors.New("they are not")
		}
		return nil
	})
	w.accept("fig-blue", "192.168.99.13", "node1")
	w.bus.serve("gw1", "default", blue)
	a.loop.Poke()
	w.shows(a, `egress_tenant_ready{pool="public",tenant="test/fig-blue"}`, 1)
	w.shows(a, `egress_gateway_alive{gateway="gw1",group="default"}`, 1)
	if n, ok := a.shown(t)[`egress_tenants_not_ready{reason="RoutePending"}`]; ok {
		t.Errorf("%v tenants still wait", n)
	}

	w.bus.change(func(b *fakeBus) { b.fail = errors.New("no") })
	w.ask("fig-red", "public")
	w.until("a failure to be counted", func() error {
		if a.shown(t)[`egress_reconcile_errors_total{kind="bus"}`] == 0 || a.loop.Behind() == 0 {
			return fmt.Errorf("it is not; behind by %s", a.loop.Behind())
		}
		return nil
	})
	w.bus.change(func(b *fakeBus) { b.fail = nil })
	w.until("the gateways to be told again", func() error {
		if d := a.loop.Behind(); d != 0 {
			return fmt.Errorf("behind by %s", d)
		}
		return nil
	})
	events := 0.0
	for series, n := range a.shown(t) {
		if strings.HasPrefix(series, "informer_processing_latency_seconds{") {
			events += n
		}
	}
	if events == 0 {
		t.Error("the informers tell nothing")
	}

	a.stop()
	for series := range a.shown(t) {
		if strings.HasPrefix(series, "egress_tenant") || strings.HasPrefix(series, "egress_pool") || strings.HasPrefix(series, "egress_gateway") {
			t.Errorf("a replica that does not lead shows %s", series)
		}
	}
}
