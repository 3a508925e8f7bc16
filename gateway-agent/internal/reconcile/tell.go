// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// The contents of events. Field names are part of the audit's format.
type (
	// programmedData: from now on the tenant leaves with these addresses.
	programmedData struct {
		Gateway    string       `json:"gateway"`
		UID        string       `json:"uid"`
		Generation int64        `json:"generation"`
		Namespaces []string     `json:"namespaces,omitempty"`
		GatewayIPs []netip.Addr `json:"gatewayIPs"`
		EgressIPs  []netip.Addr `json:"egressIPs"`
	}
	// removedData: the gateway holds nothing of the tenant any more.
	removedData struct {
		Gateway    string       `json:"gateway"`
		UID        string       `json:"uid"`
		Generation int64        `json:"generation"`
		EgressIPs  []netip.Addr `json:"egressIPs,omitempty"`
		Reason     string       `json:"reason"`
	}
	flushData struct {
		What  string `json:"what"`
		Count int    `json:"count"`
	}
	problemData struct {
		Gateway string `json:"gateway"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
)

// tellPrograms tells each tenant of refs whose record was programmed by this pass, or
// is programmed and was never told: a crash may have come in between.
func (l *Loop) tellPrograms(refs []Ref, now map[Ref]tenant.Status, touched map[string]bool) {
	var events []Event
	told := delta{Clusters: map[string]*clusterDelta{}, Departing: l.memory.Departing}
	for _, r := range refs {
		e, serves := l.memory.Entry(r)
		if !serves {
			continue
		}
		st, before := now[r], l.statuses[r]
		known := before.UID == st.UID && before.Generation == st.Generation
		switch {
		case !st.Programmed:
			if !known || before.Programmed || before.Reason != st.Reason {
				l.Log.Warn("tenant is not programmed", "tenant", r.String(), "reason", st.Reason, "err", st.Message)
			}
			continue
		case e.Adopted, e.Told && !(touched[r.String()] && !(known && before.Programmed)):
			continue
		}
		l.Log.Info("tenant is programmed", "tenant", r.String(), "number", e.Number, "generation", st.Generation,
			"gateway_ips", e.Record.GatewayIPs, "egress_ips", e.Record.EgressIPs)
		events = append(events, Event{
			Cluster: r.Cluster, Kind: EventProgrammed, Subject: "tenant/" + r.Name, ID: fmt.Sprintf("programmed/%s/%d", st.UID, st.Generation),
			Data: programmedData{l.Gateway, st.UID, st.Generation, e.Record.Namespaces, e.Record.GatewayIPs, e.Record.EgressIPs},
		})
		e.Told = true
		told.put(l.memory, r, e)
	}
	if len(events) > 0 {
		l.tell(events...)
		l.saveAgain(&told)
	}
}

// tellRemovals tells the departing tenants of which nothing is left, and
// forgets them. A crash in between has them told once more, with the same ids.
func (l *Loop) tellRemovals(failures map[string]Failure) {
	var events []Event
	var still []Removal
	for _, gone := range l.memory.Departing {
		if _, failed := failures[gone.String()]; failed {
			still = append(still, gone)
			continue
		}
		l.Log.Info("tenant is removed", "tenant", gone.String(), "reason", gone.Reason)
		events = append(events, Event{
			Cluster: gone.Cluster, Kind: EventRemoved, Subject: "tenant/" + gone.Name, ID: fmt.Sprintf("removed/%s/%d", gone.UID, gone.Generation),
			Data: removedData{l.Gateway, gone.UID, gone.Generation, gone.EgressIPs, gone.Reason},
		})
	}
	if len(events) == 0 {
		return
	}
	l.tell(events...)
	l.saveAgain(&delta{Departing: still})
}

// saveAgain keeps what has been told. If the disk does not take it, it is told
// once more after a restart.
func (l *Loop) saveAgain(told *delta) {
	if _, err := l.Store.Save(l.memory, told); err != nil {
		l.Log.Warn("the disk copy could not be written; the next pass tries again", "err", err)
	}
	l.take(told)
}

// tellHeld raises the alarm of a mass removal.
func (l *Loop) tellHeld(held []Ref) {
	if len(held) == 0 {
		return
	}
	var events []Event
	for _, r := range held {
		e, _ := l.memory.Entry(r)
		events = append(events, Event{
			Cluster: r.Cluster, Kind: EventHeld, Subject: "tenant/" + r.Name, ID: fmt.Sprintf("held/%s/%d/%d", e.Record.UID, e.Record.Generation, l.memory.Clusters[r.Cluster].Generation),
			Data: problemData{l.Gateway, ReasonHeld, heldMessage},
		})
	}
	l.Log.Error("TOO MANY TENANTS VANISHED AT ONCE, without a tombstone: they are held and served on; if this is meant, run `gateway-agent confirm-removals`",
		"cluster", held[0].Cluster, "count", len(held), "first", held[0].Name)
	l.tell(events...)
}

// tellProblems tells what has become wrong, and what no longer is.
func (l *Loop) tellProblems(now []plan.Problem) {
	news, all := fresh(now, l.reported)
	var events []Event
	for _, p := range news {
		l.Log.Warn("problem", "cluster", p.Cluster, "tenant", p.Tenant, "node", p.Node, "reason", p.Reason, "err", p.Message)
		events = append(events, Event{
			Cluster: p.Cluster, Kind: kindOf(p), Subject: subjectOf(p), Data: problemData{l.Gateway, p.Reason, p.Message},
		})
	}
	for p := range l.reported {
		if !all[p] {
			l.Log.Info("problem is gone", "cluster", p.Cluster, "tenant", p.Tenant, "node", p.Node, "reason", p.Reason)
		}
	}
	l.reported = all
	l.tell(events...)
}

func kindOf(p plan.Problem) string {
	if p.Reason == ReasonPortsNearlyExhausted || p.Reason == ReasonPortsExhausted {
		return EventPorts
	}
	return EventProblem
}

func subjectOf(p plan.Problem) string {
	switch {
	case p.Tenant != "":
		return "tenant/" + p.Tenant
	case p.Node != "":
		return "node/" + p.Node
	case p.Cluster != "":
		return "cluster/" + p.Cluster
	}
	return "gateway"
}

func flushEvent(id, what string, count int) Event {
	r := refOf(id)
	return Event{Cluster: r.Cluster, Kind: EventFlush, Subject: "tenant/" + r.Name, Data: flushData{what, count}}
}

// fresh returns the problems that are not in before, and all of now as a set.
func fresh(now []plan.Problem, before map[plan.Problem]bool) (list []plan.Problem, all map[plan.Problem]bool) {
	all = make(map[plan.Problem]bool, len(now))
	for _, p := range now {
		if !before[p] && !all[p] {
			list = append(list, p)
		}
		all[p] = true
	}
	return list, all
}
