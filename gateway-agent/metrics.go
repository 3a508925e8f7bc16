// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/reconcile"
)

// scrapeTimeout bounds what one scrape may cost the kernel.
const scrapeTimeout = 5 * time.Second

// metrics are what the daemon counts itself; all else is read when scraped.
type metrics struct {
	passes   *prometheus.CounterVec
	duration prometheus.Histogram
	steps    prometheus.Counter
	flushed  prometheus.Counter
	build    prometheus.Gauge
}

func newMetrics(version string) *metrics {
	m := &metrics{
		passes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "egress_reconcile_passes_total", Help: "Passes of the loop, by result."}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "egress_reconcile_duration_seconds", Help: "Duration of a pass.", Buckets: prometheus.ExponentialBuckets(0.002, 2, 14)}),
		steps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "egress_reconcile_steps_total", Help: "Changes made to the kernel."}),
		flushed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "egress_conntrack_flushed_total", Help: "Connections that were ended because they would have had a wrong source."}),
		build: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "egress_build_info", Help: "Always 1.", ConstLabels: prometheus.Labels{"version": version}}),
	}
	m.build.Set(1)
	return m
}

func (m *metrics) observe(p reconcile.Pass) {
	result := "ok"
	if p.Err != nil || p.Failures > 0 {
		result = "failed"
	}
	m.passes.WithLabelValues(result).Inc()
	m.duration.Observe(p.Duration.Seconds())
	m.steps.Add(float64(p.Steps))
}

func (m *metrics) register(r *prometheus.Registry, s scraped) {
	r.MustRegister(m.passes, m.duration, m.steps, m.flushed, m.build, s,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// scraped reads the rest at the time of the scrape.
type scraped struct {
	snapshot  func() *reconcile.Snapshot
	connected func() bool
	counters  func(context.Context) (kernel.Counters, error)
	audit     interface {
		Pending() int
		Dropped() uint64
	}
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe sends nothing: the collector is unchecked, its metrics are listed in
// Collect only.
func (s scraped) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s scraped) Collect(out chan<- prometheus.Metric) {
	gauge := func(name, help string, value float64) {
		out <- prometheus.MustNewConstMetric(describe(name, help), prometheus.GaugeValue, value)
	}
	snap := s.snapshot()
	programmed, failed, held := snap.Counts()
	gauge("egress_gateway_tenants_programmed", "Tenants that the kernel serves as their records ask for.", float64(programmed))
	gauge("egress_gateway_tenants_failed", "Tenants that are not served as their records ask for.", float64(failed))
	gauge("egress_gateway_tenants_held", "Tenants that are kept although their records vanished.", float64(held))
	gauge("egress_gateway_problems", "Problems that status shows.", float64(len(snap.Problems)))
	gauge("egress_nats_connected", "Whether NATS is connected.", boolValue(s.connected()))
	gauge("egress_audit_spool_events", "Audit events that NATS has not acknowledged yet.", float64(s.audit.Pending()))
	out <- prometheus.MustNewConstMetric(describe("egress_audit_dropped_total", "Audit events that were lost: the spool was full or damaged."),
		prometheus.CounterValue, float64(s.audit.Dropped()))
	if !snap.Pass.Began.IsZero() {
		gauge("egress_gateway_last_pass_timestamp_seconds", "When the last pass of the loop began.", float64(snap.Pass.Began.UnixMilli())/1000)
	}
	s.collectClusters(out, snap)
	s.collectTraffic(out, snap)
}

func (s scraped) collectClusters(out chan<- prometheus.Metric, snap *reconcile.Snapshot) {
	age := describe("egress_state_age_seconds", "Time since the cluster's writer was last alive.", "cluster")
	revision := describe("egress_state_revision", "Generation of the state in force.", "cluster")
	for cluster, c := range snap.Memory.Clusters {
		out <- prometheus.MustNewConstMetric(revision, prometheus.GaugeValue, float64(c.Generation), cluster)
		if beat := snap.Heartbeats[cluster]; !beat.IsZero() {
			out <- prometheus.MustNewConstMetric(age, prometheus.GaugeValue, time.Since(beat).Seconds(), cluster)
		}
	}
}

func (s scraped) collectTraffic(out chan<- prometheus.Metric, snap *reconcile.Snapshot) {
	ready := describe("egress_gateway_tenant_ready", "Whether the tenant is programmed.", "tenant")
	for ref, st := range snap.Statuses {
		out <- prometheus.MustNewConstMetric(ready, prometheus.GaugeValue, boolValue(st.Programmed), ref.String())
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	counters, err := s.counters(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(describe("egress_gateway_tenant_packets_total", ""), err)
		return
	}
	count := func(name, help string, labels []string, value uint64, values ...string) {
		out <- prometheus.MustNewConstMetric(describe(name, help, labels...), prometheus.CounterValue, float64(value), values...)
	}
	for id, t := range counters.Tenants {
		by := []string{"tenant"}
		count("egress_gateway_tenant_packets_total", "Packets from the tenant's pods since its link was made.", by, t.FromPods.Packets, id)
		count("egress_gateway_tenant_bytes_total", "Bytes from the tenant's pods since its link was made.", by, t.FromPods.Bytes, id)
	}
	for what, c := range counters.Guards {
		count("egress_gateway_guard_drops_total", "Packets that a guard dropped.", []string{"guard"}, c.Packets, what)
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
