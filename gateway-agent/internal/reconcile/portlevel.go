// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"fmt"
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// Reasons of problems with ports.
const (
	ReasonPortsNearlyExhausted = "PortsNearlyExhausted"
	ReasonPortsExhausted       = "PortsExhausted"
)

// The parts of a target's ports at which its level changes. The kernel gives up
// the search for a free port early: from 96 % on it drops new connections. A
// level ends a tenth below where it begins, so that it does not flicker.
const (
	levelNear      = 0.80
	levelExhausted = 0.95
	levelSlack     = 0.10
	levelEnds      = levelNear - levelSlack
)

// portLevel says how near a target is to its last port.
type portLevel int

const (
	portsNear portLevel = iota + 1
	portsExhausted
)

// judge gives each target its level. full holds all that are above levelEnds.
func (w *PortWatch) judge(full map[PortTarget]int) {
	levels := make(map[PortTarget]portLevel)
	for t, used := range full {
		was := w.levels[t]
		switch {
		case used >= w.of(levelExhausted), was == portsExhausted && used >= w.of(levelExhausted-levelSlack):
			levels[t] = portsExhausted
		case used >= w.of(levelNear), was != 0:
			levels[t] = portsNear
		}
	}
	w.levels = levels
}

// exhausted returns the targets that have hardly a port left.
func (w *PortWatch) exhausted() []PortTarget {
	var out []PortTarget
	for t, level := range w.levels {
		if level == portsExhausted {
			out = append(out, t)
		}
	}
	return out
}

// problems words the levels, sorted. The words hold no numbers that change with
// each look: a new problem is told, to the audit too.
func (w *PortWatch) problems(tenants owners) []plan.Problem {
	var out []plan.Problem
	for t, level := range w.levels {
		ref, known := tenants.byEgress[t.Egress]
		whose, remedy := "egress IP", "give the tenant more egress addresses (annotation egress-gateway.io/egress-ips, or addressesPerTenant of its pool), or let the application keep its connections"
		switch {
		case !known && !slices.Contains(w.Snapshot().Addresses, t.Egress):
			continue // of a tenant that has gone, or lost the address
		case !known:
			whose, remedy = "the gateway's own address", "all tenants share it towards the nodes' network; let the pods there be reached without the gateway, or let the application keep its connections"
		}
		p := plan.Problem{Cluster: ref.Cluster, Tenant: ref.Name, Warning: true, Reason: ReasonPortsNearlyExhausted}
		what := fmt.Sprintf("more than %.0f %% of the %d ports are in use; new connections there fail from about 96 %% on", 100*levelNear, w.Ports)
		if level == portsExhausted {
			p.Reason = ReasonPortsExhausted
			what = fmt.Sprintf("hardly any of the %d ports is free; new connections there fail, others do not", w.Ports)
		}
		p.Message = fmt.Sprintf("%s %s towards %s: %s; %s", whose, t.Egress, t.Where(), what, remedy)
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b plan.Problem) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Message, b.Message))
	})
	return out
}

// Where names protocol and destination.
func (t PortTarget) Where() string {
	switch t.Protocol {
	case 6:
		return "tcp " + t.Destination.String()
	case 17:
		return "udp " + t.Destination.String()
	}
	return fmt.Sprintf("%s (protocol %d)", t.Destination.Addr(), t.Protocol)
}
