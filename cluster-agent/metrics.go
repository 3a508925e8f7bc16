// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"egress-gateway.io/shared/daemon"
)

// figures are what the process as a whole shows, read when scraped.
type figures struct {
	// behind is for how long the gateways have not been told the latest state;
	// ok is false while this replica does not lead.
	behind func() (d time.Duration, ok bool)
	bus    interface {
		Connected() bool
		ServerClock() (ahead, uncertain time.Duration, known bool)
		Expiries() map[string]time.Time
	}
	gateways interface {
		Ages() map[string]time.Duration
	}
	audit interface {
		Pending() int
		Dropped() uint64
	}
}

// register makes them part of r.
func (f figures) register(r prometheus.Registerer) { r.MustRegister(f, daemon.ReadBuild().Metric()) }

// Describe sends nothing: which figures there are is known when scraped.
func (f figures) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (f figures) Collect(out chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, name, help string, value float64, label, of []string) {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, label, nil), kind, value, of...)
	}
	gauge := func(name, help string, value float64) { send(prometheus.GaugeValue, name, help, value, nil, nil) }
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	behind, leads := f.behind()
	gauge("egress_leader", "1 while this replica leads.", truth(leads))
	if leads {
		gauge("egress_state_behind_seconds", "For how long the gateways have not been told the latest state; 0 if they have.", behind.Seconds())
	}
	gauge("egress_nats_connected", "1 while there is a connection to NATS.", truth(f.bus.Connected()))
	if ahead, uncertain, known := f.bus.ServerClock(); known {
		gauge("egress_nats_clock_skew_seconds", "How far the clock of the NATS server is ahead of this machine's.", ahead.Seconds())
		gauge("egress_nats_clock_uncertainty_seconds", "How far egress_nats_clock_skew_seconds can be wrong: half of the shortest round trip.", uncertain.Seconds())
	}
	gaugeOf := func(name, help string, value float64, label, of string) {
		send(prometheus.GaugeValue, name, help, value, []string{label}, []string{of})
	}
	for which, ends := range f.bus.Expiries() {
		gaugeOf("egress_nats_certificate_expiry_timestamp_seconds", "When a certificate of the connection to NATS ends.", float64(ends.Unix()), "certificate", which)
	}
	for name, age := range f.gateways.Ages() {
		gaugeOf("egress_gateway_report_age_seconds", "Time since the gateway's last report of itself came.", age.Seconds(), "gateway", name)
	}
	gauge("egress_audit_spool_events", "Audit events that NATS has not taken yet.", float64(f.audit.Pending()))
	send(prometheus.CounterValue, "egress_audit_dropped_total", "Audit events that were lost: the spool was full or damaged.", float64(f.audit.Dropped()), nil, nil)
}
