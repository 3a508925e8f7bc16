// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// Reasons of problems with ports.
const (
	ReasonPortsNearlyExhausted = "PortsNearlyExhausted"
	ReasonPortsExhausted       = "PortsExhausted"
)

// The parts of a target's ports at which its level changes. A level ends a tenth
// below where it begins, so that it does not flicker.
//
// The kernel tries the pod's own port, then at most 240 others in four rows of
// neighbours, and drops the connection if all are taken. With ports in use all
// over the range that begins at 96 %; where they stand in one dense row, as
// those of a single pod do, connections of other pods fail from half on.
const (
	levelWatched   = 0.50
	levelNear      = 0.80
	levelExhausted = 0.95
	levelSlack     = 0.10
	// levelHold is how long a target that failed connections keeps its level.
	levelHold = time.Minute
)

// portLevel says how near a target is to its last port.
type portLevel int

const (
	portsWatched portLevel = iota
	portsNear
	portsExhausted
)

// portState is what is known of a target.
type portState struct {
	level  portLevel
	failed time.Time // when connections failed last
}

// suspects returns those targets to which connections that found no port are
// most likely to have gone: of all that are watched, now or before, the fullest.
func (w *PortWatch) suspects(full map[PortTarget]int) []PortTarget {
	of := make(map[portLevel]map[PortTarget]bool)
	add := func(level portLevel, t PortTarget) {
		if of[level] == nil {
			of[level] = make(map[PortTarget]bool)
		}
		of[level][t] = true
	}
	for t, state := range w.levels {
		add(state.level, t)
	}
	for t, used := range full {
		add(w.levelOf(used), t)
	}
	for _, level := range []portLevel{portsExhausted, portsNear, portsWatched} {
		if len(of[level]) > 0 {
			return slices.Collect(maps.Keys(of[level]))
		}
	}
	return nil
}

func (w *PortWatch) levelOf(used int) portLevel {
	switch {
	case used >= w.of(levelExhausted):
		return portsExhausted
	case used >= w.of(levelNear):
		return portsNear
	}
	return portsWatched
}

// judge gives each target its level. full holds all that are watched; failing
// are those to which connections have just failed.
func (w *PortWatch) judge(full map[PortTarget]int, failing []PortTarget, now time.Time) {
	states := make(map[PortTarget]portState)
	for t, used := range full {
		was := w.levels[t]
		state := portState{w.levelOf(used), was.failed}
		if slices.Contains(failing, t) {
			state.failed = now
		}
		recent := !state.failed.IsZero() && now.Sub(state.failed) < levelHold
		// What would hold the level if the slack were not there.
		held := min(w.levelOf(used+w.of(levelSlack)), was.level)
		state.level = max(state.level, held)
		if recent {
			state.level = portsExhausted
		}
		states[t] = state
	}
	w.levels = states
}

// problems words the levels, sorted. The words hold no numbers that change with
// each look: a new problem is told, to the audit too.
func (w *PortWatch) problems(tenants owners) []plan.Problem {
	var out []plan.Problem
	for t, state := range w.levels {
		if state.level == portsWatched {
			continue
		}
		ref, known := tenants.byEgress[t.Egress]
		whose, remedy := "egress IP", "give the tenant more egress addresses (several in the annotation egress-gateway.io/egress-ips), or let the application keep its connections"
		switch {
		case !known && !slices.Contains(w.Snapshot().Addresses, t.Egress):
			continue // of a tenant that has gone, or lost the address
		case !known:
			whose, remedy = "the gateway's own address", "all tenants share it towards the nodes' network; let the pods there be reached without the gateway, or let the application keep its connections"
		}
		p := plan.Problem{Cluster: ref.Cluster, Tenant: ref.Name, Warning: true, Reason: ReasonPortsNearlyExhausted}
		what := fmt.Sprintf("more than %.0f %% of the %d ports are in use; new connections there fail from about 96 %% on", 100*(levelNear-levelSlack), w.Ports)
		if state.level == portsExhausted {
			p.Reason = ReasonPortsExhausted
			what = fmt.Sprintf("the kernel finds no free one of the %d ports any more, or not soon enough; new connections there fail, others do not", w.Ports)
		}
		if to, spills := w.spilling[t]; spills {
			what = fmt.Sprintf("of the %d ports too few are free; new connections there leave with %s meanwhile", w.Ports, to)
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
