// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/daemon"
)

// metrics are what the daemon counts itself; all else is read when scraped.
type metrics struct {
	passes      *prometheus.CounterVec
	errors      *prometheus.CounterVec
	duration    *prometheus.HistogramVec
	programming prometheus.Histogram
	steps       prometheus.Counter
	flushed     prometheus.Counter
	conflicts   prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egress_reconcile_passes_total", Help: "Passes of the loop, by result."}, []string{"result"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egress_reconcile_errors_total", Help: "What failed in passes, by what it concerns."}, []string{"kind"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "egress_reconcile_duration_seconds", Help: "Duration of a pass, whether it changed something or not, by what it compared with the kernel: whole, part (of some tenants) or none (nothing had changed).",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14)}, []string{"kind"}),
		programming: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "egress_programming_duration_seconds", Help: "Duration of a pass that changed the kernel: observe, compare, apply.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 14)}),
		steps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "egress_reconcile_steps_total", Help: "Changes made to the kernel."}),
		flushed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "egress_conntrack_flushed_total", Help: "Connections that were ended because they would have had a wrong source."}),
		conflicts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "egress_address_conflicts_total", Help: "Packets (ARP, neighbour discovery) in which other hosts claimed an address in use here."}),
	}
	for _, kind := range reconcile.Kinds() {
		m.errors.WithLabelValues(kind) // so that the first one shows as an increase
	}
	return m
}

func (m *metrics) observe(p reconcile.Pass) {
	result := "ok"
	for kind, n := range p.Failed {
		m.errors.WithLabelValues(kind).Add(float64(n))
		if kind != reconcile.FailedOther {
			result = "failed"
		}
	}
	m.passes.WithLabelValues(result).Inc()
	if p.Kind != "" {
		m.duration.WithLabelValues(p.Kind).Observe(p.Duration.Seconds())
	}
	m.steps.Add(float64(p.Steps))
	if p.Steps > 0 {
		m.programming.Observe(p.Duration.Seconds())
	}
}

func (m *metrics) register(r *prometheus.Registry, s scraped) {
	r.MustRegister(m.passes, m.errors, m.duration, m.programming, m.steps, m.flushed, m.conflicts, daemon.ReadBuild().Metric(), s,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}
