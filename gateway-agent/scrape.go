// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/tenant"
)

// scrapeTimeout bounds what one scrape may cost the kernel.
const scrapeTimeout = 5 * time.Second

// scraped reads at the time of the scrape what others hold: the loop, the watch
// over the ports, and the kernel, that with a few requests for all tenants.
type scraped struct {
	snapshot func() *reconcile.Snapshot
	strays   func() *reconcile.StrayView
	ports    func() *reconcile.PortsView
	counters func(context.Context) (kernel.Counters, error)
	tables   func() (kernel.Tables, error)
	older    *older
	bus      interface {
		Connected() bool
		ServerClock() (ahead, uncertain time.Duration, known bool)
		Signs() map[string]bus.Sign
		Expiries() map[string]time.Time
		Rejected() map[string]uint64
	}
	audit interface {
		Pending() int
		Dropped() uint64
	}
}

// older counts the snapshots that the loop refused since it had applied newer
// ones in an earlier life, of which the follower knows nothing.
type older struct {
	refused map[string]bool // clusters, in the last pass
	count   atomic.Uint64
}

// look takes in the problems of a pass; it is for the goroutine of the loop.
func (o *older) look(problems []plan.Problem) {
	now := map[string]bool{}
	for _, p := range problems {
		if p.Reason == reconcile.ReasonOldSnapshot {
			now[p.Cluster] = true
			if !o.refused[p.Cluster] {
				o.count.Add(1)
			}
		}
	}
	o.refused = now
}

// sink takes values. Labels alternate between name and value.
type sink chan<- prometheus.Metric

func (s sink) gauge(name, help string, value float64, labels ...string) {
	s.send(prometheus.GaugeValue, name, help, value, labels)
}

func (s sink) counter(name, help string, value uint64, labels ...string) {
	s.send(prometheus.CounterValue, name, help, float64(value), labels)
}

func (s sink) send(kind prometheus.ValueType, name, help string, value float64, labels []string) {
	var names, values []string
	for i := 0; i < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	s <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
}

// failed makes the scrape say that something could not be read.
func (s sink) failed(name string, err error) {
	s <- prometheus.NewInvalidMetric(prometheus.NewDesc(name, "", nil, nil), err)
}

// Describe sends nothing: the collector is unchecked, its metrics are listed in
// Collect only.
func (s scraped) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s scraped) Collect(out chan<- prometheus.Metric) {
	to, snap := sink(out), s.snapshot()
	programmed, failed, held := snap.Counts()
	to.gauge("egress_gateway_tenants_programmed", "Tenants that the kernel serves as their records ask for.", float64(programmed))
	to.gauge("egress_gateway_tenants_failed", "Tenants that are not served as their records ask for.", float64(failed))
	to.gauge("egress_gateway_tenants_held", "Tenants that are kept although their records vanished.", float64(held))
	to.gauge("egress_gateway_problems", "Problems that status shows, warnings included.", float64(len(snap.Problems)))
	to.gauge("egress_audit_spool_events", "Audit events that NATS has not acknowledged yet.", float64(s.audit.Pending()))
	to.counter("egress_audit_dropped_total", "Audit events that were lost: the spool was full or damaged.", s.audit.Dropped())
	if !snap.Pass.Began.IsZero() {
		to.gauge("egress_gateway_last_pass_timestamp_seconds", "When the last pass of the loop began.", float64(snap.Pass.Began.UnixMilli())/1000)
	}
	for ref, st := range snap.Statuses {
		to.gauge("egress_gateway_tenant_ready", "1 if the tenant is programmed.", boolValue(st.Programmed), "tenant", ref.String())
	}
	for cluster, c := range snap.Memory.Clusters {
		to.gauge("egress_state_revision", "Generation of the state in force.", float64(c.Generation), "cluster", cluster)
	}
	s.collectBus(to)
	s.collectTraffic(to)
	s.collectPorts(to)
	s.collectTables(to)
}

func (s scraped) collectBus(to sink) {
	to.gauge("egress_nats_connected", "1 while there is a connection to NATS.", boolValue(s.bus.Connected()))
	for cluster, sign := range s.bus.Signs() {
		to.gauge("egress_state_age_seconds", "Time since the cluster's writer was last alive.", sign.Age.Seconds(), "cluster", cluster)
		if sign.AheadKnown {
			to.gauge("egress_clock_skew_seconds", "How far the clock of the cluster's writer is ahead of this machine's.", sign.Ahead.Seconds(), "cluster", cluster)
		}
	}
	if ahead, uncertain, known := s.bus.ServerClock(); known {
		to.gauge("egress_nats_clock_skew_seconds", "How far the clock of the NATS server is ahead of this machine's.", ahead.Seconds())
		to.gauge("egress_nats_clock_uncertainty_seconds", "How far egress_nats_clock_skew_seconds can be wrong: half of the shortest round trip.", uncertain.Seconds())
	}
	for which, ends := range s.bus.Expiries() {
		to.gauge("egress_nats_certificate_expiry_timestamp_seconds", "When a certificate of the connection to NATS ends.", float64(ends.Unix()), "certificate", which)
	}
	for reason, n := range s.bus.Rejected() {
		if reason == "older" {
			n += s.older.count.Load()
		}
		to.counter("egress_snapshot_rejected_total", "Snapshots of a cluster's state that were not taken.", n, "reason", reason)
	}
}

func (s scraped) collectTraffic(to sink) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	counters, err := s.counters(ctx)
	if err != nil {
		to.failed("egress_gateway_tenant_packets_total", err)
		return
	}
	for id, t := range counters.Tenants {
		to.counter("egress_gateway_tenant_packets_total", "Packets from the tenant's pods since its link was made.", t.FromPods.Packets, "tenant", id)
		to.counter("egress_gateway_tenant_bytes_total", "Bytes from the tenant's pods since its link was made.", t.FromPods.Bytes, "tenant", id)
	}
	for id, n := range counters.NodeSources {
		to.counter("egress_gateway_tenant_node_ip_sources_total", "Connections of the tenant that came with a node's address, and were translated.", n, "tenant", id)
	}
	refused := "Packets of the tenant that were refused, by the guards too: what came by its link, what carried its mark, what came from outside for its addresses, and what its pods sent past its link."
	for id, reasons := range counters.RefusedOf {
		for why, n := range reasons {
			to.counter("egress_gateway_tenant_refused_packets_total", refused, n, "tenant", id, "reason", why)
		}
	}
	strays := s.strays()
	for ref, n := range strays.Refused {
		to.counter("egress_gateway_tenant_refused_packets_total", refused, n, "tenant", ref.String(), "reason", "past_link")
	}
	for _, l := range strays.Lines {
		to.gauge("egress_gateway_stray_packets", "Packets that a node has sent past the tenant's link, while it does: its neighbour entry is wrong. tenant is empty where it can not be told.",
			float64(l.Packets), "node", l.Cluster+"/"+l.Node, "tenant", strings.Trim(l.Tenant.String(), "/"), "family", l.Family.String())
	}
	for what, c := range counters.Guards {
		to.counter("egress_gateway_guard_drops_total", "Packets that a guard dropped: leaks prevented.", c.Packets, "guard", what)
	}
	for why, c := range counters.Refused {
		to.counter("egress_gateway_refused_packets_total", "Packets that were refused before they came to a guard.", c.Packets, "reason", why)
	}
}

func (s scraped) collectPorts(to sink) {
	v := s.ports()
	if v.At.IsZero() {
		return
	}
	to.gauge("egress_gateway_destination_ports", "Source ports that an egress IP has towards one destination (protocol, address, port).", flows.Ports)
	for ref, use := range v.Tenants {
		id := ref.String()
		to.gauge("egress_gateway_tenant_connections", "Entries of connection tracking that are the tenant's.", float64(use.Connections), "tenant", id)
		to.gauge("egress_gateway_tenant_ports_used", "Source ports in use from one egress IP of the tenant towards its busiest destination.", float64(use.Used), "tenant", id)
		to.counter("egress_gateway_tenant_connections_failed_total",
			"Connections that failed while hardly a port was free. The kernel counts them for all tenants together; the count is divided among those without ports.", v.Failed[ref], "tenant", id)
	}
	to.gauge("egress_conntrack_scan_duration_seconds", "What the last look at all connections took.", v.Took.Seconds())
	lost := "Packets that connection tracking dropped, and entries that it evicted, of everybody. not_inserted: no free port, or a race was lost; table_full: no room; evicted: unanswered, made room."
	to.counter("egress_conntrack_lost_total", lost, v.Lost.NotInserted, "cause", "not_inserted")
	to.counter("egress_conntrack_lost_total", lost, v.Lost.Dropped, "cause", "table_full")
	to.counter("egress_conntrack_lost_total", lost, v.Lost.Evicted, "cause", "evicted")
}

func (s scraped) collectTables(to sink) {
	tables, err := s.tables()
	if err != nil {
		to.failed("egress_conntrack_entries", err)
		return
	}
	to.gauge("egress_conntrack_entries", "Entries of connection tracking, of everybody.", float64(tables.Conntrack.Used))
	to.gauge("egress_conntrack_limit", "Entries that connection tracking has room for (nf_conntrack_max).", float64(tables.Conntrack.Limit))
	if tables.Buckets > 0 {
		to.gauge("egress_conntrack_buckets", "Lists that connection tracking finds its entries in, each of them twice (nf_conntrack_buckets).", float64(tables.Buckets))
	}
	for _, f := range tenant.Families() {
		use, known := tables.Neighbours[f]
		if !known {
			continue
		}
		to.gauge("egress_neighbour_entries", "Entries of the neighbour table, of the whole machine.", float64(use.Used), "family", f.String())
		if use.Limit > 0 {
			to.gauge("egress_neighbour_limit", "Entries that the neighbour table has room for (gc_thresh3).", float64(use.Limit), "family", f.String())
		}
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
