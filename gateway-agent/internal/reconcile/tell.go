// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"strings"

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

// tellPrograms tells each tenant whose record is programmed now and was not
// before. After a restart all are told again, with the same ids: better twice
// than never, should the event have been lost with the process.
func (l *Loop) tellPrograms(now map[Ref]tenant.Status) {
	var events []Event
	for _, r := range l.memory.Refs() {
		st, before := now[r], l.statuses[r]
		same := before.Programmed == st.Programmed && before.UID == st.UID && before.Generation == st.Generation
		if same && before.Reason == st.Reason {
			continue
		}
		if !st.Programmed {
			l.Log.Warn("tenant is not programmed", "tenant", r.String(), "reason", st.Reason, "err", st.Message)
			continue
		}
		if same || st.UID == "" {
			continue // only its reason changed, or it is adopted and has no name yet
		}
		e, _ := l.memory.Entry(r)
		l.Log.Info("tenant is programmed", "tenant", r.String(), "number", e.Number, "generation", st.Generation,
			"gateway_ips", e.Record.GatewayIPs, "egress_ips", e.Record.EgressIPs)
		events = append(events, Event{
			Cluster: r.Cluster, Kind: EventProgrammed, Subject: "tenant/" + r.Name, ID: fmt.Sprintf("programmed/%s/%d", st.UID, st.Generation),
			Data: programmedData{l.Gateway, st.UID, st.Generation, e.Record.Namespaces, e.Record.GatewayIPs, e.Record.EgressIPs},
		})
	}
	l.tell(events...)
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
	l.memory.Departing = still
	if _, err := l.Store.Save(l.memory); err != nil {
		l.Log.Warn("the disk copy could not be written; the next pass tries again", "err", err)
	}
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
			Cluster: p.Cluster, Kind: EventProblem, Subject: subjectOf(p), Data: problemData{l.Gateway, p.Reason, p.Message},
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
	cluster, name, _ := strings.Cut(id, "/")
	return Event{Cluster: cluster, Kind: EventFlush, Subject: "tenant/" + name, Data: flushData{what, count}}
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
