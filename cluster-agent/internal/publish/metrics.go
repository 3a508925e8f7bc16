// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
)

// Metrics are the figures of a loop. The zero pointer counts nothing.
type Metrics struct {
	duration    prometheus.Histogram
	errors      *prometheus.CounterVec
	tenants     *prometheus.GaugeVec
	addresses   *prometheus.GaugeVec
	allocations *prometheus.GaugeVec
}

// NewMetrics registers the figures.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "egress_reconcile_duration_seconds", Help: "Duration of one pass over everything.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egress_reconcile_errors_total", Help: "Steps of a pass that failed.",
		}, []string{"kind"}),
		tenants: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "egress_tenants", Help: "Tenants that are asked for, by whether they have addresses.",
		}, []string{"state"}),
		addresses: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "egress_pool_addresses", Help: "Egress addresses of a pool: in total, used by tenants, and resting in quarantine.",
		}, []string{"pool", "state"}),
		allocations: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "egress_allocations", Help: "Addresses of a pool that tenants hold, by what they are for.",
		}, []string{"pool", "role"}),
	}
	r.MustRegister(m.duration, m.errors, m.tenants, m.addresses, m.allocations)
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

// Set sets the gauges: tenants with and without addresses, and the pools.
func (m *Metrics) Set(allocated, refused int, pools []*v1alpha1.EgressPool) {
	if m == nil {
		return
	}
	m.tenants.WithLabelValues("allocated").Set(float64(allocated))
	m.tenants.WithLabelValues("refused").Set(float64(refused))
	m.addresses.Reset()
	m.allocations.Reset()
	for _, o := range pools {
		for role, u := range map[string]v1alpha1.Usage{"egress": o.Status.Egress, "gateway": o.Status.Gateway} {
			m.allocations.WithLabelValues(o.Name, role).Set(float64(u.Used))
		}
		m.addresses.WithLabelValues(o.Name, "total").Set(float64(o.Status.Egress.Total))
		m.addresses.WithLabelValues(o.Name, "used").Set(float64(o.Status.Egress.Used))
		m.addresses.WithLabelValues(o.Name, "resting").Set(float64(o.Status.Egress.Resting))
	}
}

// count sets the gauges to what a pass found.
func (m *Metrics) count(p *pass) {
	serving := 0
	for _, w := range p.wants {
		if w.serving() {
			serving++
		}
	}
	m.Set(serving, len(p.wants)-serving, p.input.Pools)
}
