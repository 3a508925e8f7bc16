// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
)

// Metrics are the figures of a loop. The zero pointer counts nothing.
type Metrics struct {
	duration prometheus.Histogram
	errors   *prometheus.CounterVec
	figures  atomic.Pointer[Figures] // of the last pass; nil while nobody leads here
}

// Figures are what a pass found. They are shown whole or not at all, so that a
// scrape never comes between two of them, and a replica that does not lead any
// more tells nothing that has grown old.
type Figures struct {
	// Allocated and Refused count tenants that are asked for.
	Allocated, Refused int
	Tenants            []TenantFigure
	Pools              []*v1alpha1.EgressPool
	Gateways           map[string]derive.Gateway
}

// TenantFigure is one tenant that is asked for.
type TenantFigure struct {
	Name   string // <cluster>/<tenant>, as the gateways name it
	Pool   string
	Ready  bool
	Reason string // why not
}

// kindBus is the kind of a failure to tell the gateways; the others are the
// steps of a pass.
const kindBus = "bus"

// NewMetrics registers the figures.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "egress_reconcile_duration_seconds", Help: "Duration of one pass over everything.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egress_reconcile_errors_total", Help: "Steps of a pass that failed; bus: the gateways could not be told.",
		}, []string{"kind"}),
	}
	for _, kind := range []string{stepQuarantine, stepAllocate, stepRoutes, stepRelease, stepStatus, stepPools, kindBus} {
		m.errors.WithLabelValues(kind) // so that the first one shows as an increase
	}
	r.MustRegister(m.duration, m.errors, m)
	return m
}

// Pass counts a pass.
func (m *Metrics) Pass(d time.Duration) {
	if m != nil {
		m.duration.Observe(d.Seconds())
	}
}

// Failed counts a step that failed.
func (m *Metrics) Failed(step string) {
	if m != nil {
		m.errors.WithLabelValues(step).Inc()
	}
}

// Show makes f what is shown; nil shows nothing.
func (m *Metrics) Show(f *Figures) {
	if m != nil {
		m.figures.Store(f)
	}
}

// Describe sends nothing: which figures there are depends on the pass.
func (m *Metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	f := m.figures.Load()
	if f == nil {
		return
	}
	gauge := func(name, help string, labels []string, value float64, of ...string) {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, labels, nil), prometheus.GaugeValue, value, of...)
	}
	const asked = "Tenants that are asked for, by whether they have addresses."
	gauge("egress_tenants", asked, []string{"state"}, float64(f.Allocated), "allocated")
	gauge("egress_tenants", asked, []string{"state"}, float64(f.Refused), "refused")
	waiting := map[string]int{}
	for _, t := range f.Tenants {
		if !t.Ready {
			waiting[t.Reason]++
		}
		gauge("egress_tenant_ready", "1 if the tenant is Ready, as its EgressTenant says.", []string{"tenant", "pool"}, oneIf(t.Ready), t.Name, t.Pool)
	}
	for reason, n := range waiting {
		gauge("egress_tenants_not_ready", "Tenants that are not Ready, by the reason of the condition.", []string{"reason"}, float64(n), reason)
	}
	for name, g := range f.Gateways {
		gauge("egress_gateway_alive", "1 if the gateway has reported within a minute; judged only with a connection to NATS.", []string{"gateway", "group"}, oneIf(g.Alive), name, g.Group)
	}
	for _, o := range f.Pools {
		for role, u := range map[string]v1alpha1.Usage{"egress": o.Status.Egress, "gateway": o.Status.Gateway} {
			gauge("egress_allocations", "Addresses of a pool that tenants hold, by what they are for.", []string{"pool", "role"}, float64(u.Used), o.Name, role)
			for state, n := range map[string]int64{"total": u.Total, "used": u.Used, "resting": u.Resting} {
				gauge("egress_pool_addresses", "Addresses of a pool: in total, used by tenants, and resting in quarantine.", []string{"pool", "role", "state"}, float64(n), o.Name, role, state)
			}
		}
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// show makes what a pass found visible.
func (p *pass) show() {
	f := &Figures{Pools: p.input.Pools, Gateways: p.gateways}
	for _, w := range p.wants {
		if w.serving() {
			f.Allocated++
		} else {
			f.Refused++
		}
		t := TenantFigure{Name: p.ClusterName + "/" + w.Name, Pool: w.Pool, Ready: w.ready, Reason: w.notReady}
		if !t.Ready && t.Reason == "" {
			t.Reason = derive.ReasonPending // its turn comes with a later pass
		}
		f.Tenants = append(f.Tenants, t)
	}
	p.Metrics.Show(f)
}
