// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/prometheus/client_golang/prometheus"

// figures are what the process as a whole shows.
type figures struct {
	connected, leads func() bool
	audit            interface {
		Pending() int
		Dropped() uint64
	}
}

// register makes them part of r.
func (f figures) register(r prometheus.Registerer, version string) {
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge("egress_nats_connected", "1 while there is a connection to NATS.", func() float64 { return truth(f.connected()) })
	gauge("egress_leader", "1 while this replica leads.", func() float64 { return truth(f.leads()) })
	gauge("egress_audit_spool_events", "Audit events that NATS has not taken yet.", func() float64 { return float64(f.audit.Pending()) })
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "egress_audit_dropped_total", Help: "Audit events that were lost since the spool was full.",
	}, func() float64 { return float64(f.audit.Dropped()) }))
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "egress_build_info", Help: "The version of the program; always 1.", ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 }))
}
