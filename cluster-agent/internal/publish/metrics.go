// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the figures of a loop. The zero pointer counts nothing.
type Metrics struct {
	duration  prometheus.Histogram
	errors    *prometheus.CounterVec
	tenants   *prometheus.GaugeVec
	addresses *prometheus.GaugeVec
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
			Name: "egress_pool_addresses", Help: "Egress addresses of a pool.",
		}, []string{"pool", "state"}),
	}
	r.MustRegister(m.duration, m.errors, m.tenants, m.addresses)
	return m
}

func (m *Metrics) pass(d time.Duration, _ error) {
	if m != nil {
		m.duration.Observe(d.Seconds())
	}
}

func (m *Metrics) failed(step string) {
	if m != nil {
		m.errors.WithLabelValues(step).Inc()
	}
}

// count sets the gauges to what a pass found.
func (m *Metrics) count(p *pass) {
	if m == nil {
		return
	}
	serving := 0
	for _, w := range p.wants {
		if w.serving() {
			serving++
		}
	}
	m.tenants.WithLabelValues("allocated").Set(float64(serving))
	m.tenants.WithLabelValues("refused").Set(float64(len(p.wants) - serving))
	m.addresses.Reset()
	for _, o := range p.input.Pools {
		m.addresses.WithLabelValues(o.Name, "total").Set(float64(o.Status.Egress.Total))
		m.addresses.WithLabelValues(o.Name, "used").Set(float64(o.Status.Egress.Used))
		m.addresses.WithLabelValues(o.Name, "resting").Set(float64(o.Status.Egress.Resting))
	}
}
