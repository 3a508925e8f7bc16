// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// Snapshot is what the loop knew after its last pass. It must not be changed.
type Snapshot struct {
	// Pass is the last one; its Began is zero before the first.
	Pass Pass
	// Known says that there is something to serve from: a disk copy, or a
	// confirmed view. Without it the gateway is not ready.
	Known    bool
	Memory   Memory
	Statuses map[Ref]tenant.Status
	Problems []plan.Problem
	// Addresses are the VM's own.
	Addresses []netip.Addr
}

// Snapshot returns the latest. Safe for concurrent use.
func (l *Loop) Snapshot() *Snapshot { return l.snapshot.Load() }

// Counts returns how many tenants are programmed, failed and held. A held one
// counts as one of the other two as well.
func (s *Snapshot) Counts() (programmed, failed, held int) {
	for _, st := range s.Statuses {
		if st.Programmed {
			programmed++
		} else {
			failed++
		}
	}
	return programmed, failed, len(s.Memory.HeldRefs())
}

// publish makes the outcome of a pass known: to readers of the snapshot, in the
// log and in the audit, there only what has changed.
func (l *Loop) publish(res result, p Pass) {
	problems := slices.Concat(l.damaged, res.problems, l.Trouble())
	refs, only := l.concerned(res, problems, p.Err)
	statuses := l.statusesOf(refs, only, res, problems, p.Err)
	l.concerns, l.clear = map[Ref]bool{}, p.Err == nil && len(res.failures) == 0
	l.tellPrograms(refs, statuses, res.touched)
	l.tellProblems(problems)
	l.statuses = statuses
	addresses := res.host.Own
	if p.Err != nil {
		addresses = l.Snapshot().Addresses
	}
	snap := &Snapshot{
		Pass: p, Known: l.onDisk, Memory: l.Snapshot().Memory, Statuses: statuses,
		Problems: problems, Addresses: addresses,
	}
	if l.altered {
		snap.Memory, l.altered = l.memory.clone(), false
	}
	l.snapshot.Store(snap)
}

// concerned returns, in order, the tenants whose status may differ from what was
// published last; only is false if these are all.
func (l *Loop) concerned(res result, problems []plan.Problem, err error) (refs []Ref, only bool) {
	if err != nil || len(res.failures) > 0 || !l.clear {
		return l.memory.Refs(), false
	}
	set := maps.Clone(l.concerns)
	for p := range l.reported {
		set[Ref{p.Cluster, p.Tenant}] = true
	}
	for _, p := range problems {
		set[Ref{p.Cluster, p.Tenant}] = true
	}
	for id := range res.touched {
		set[refOf(id)] = true
	}
	maps.DeleteFunc(set, func(r Ref, _ bool) bool { return r.Name == "" }) // problems of nobody
	return slices.SortedFunc(maps.Keys(set), compareRefs), true
}

// statusesOf says of each tenant whether the kernel holds all that its record
// asks for. If only refs are concerned, the others are as they were.
func (l *Loop) statusesOf(refs []Ref, only bool, res result, problems []plan.Problem, err error) map[Ref]tenant.Status {
	if only && len(refs) == 0 {
		return l.statuses
	}
	byTenant := map[Ref]plan.Problem{}
	for _, p := range slices.Backward(problems) {
		ref := Ref{p.Cluster, p.Tenant}
		if before, known := byTenant[ref]; !known || !p.Warning || before.Warning {
			byTenant[ref] = p // the first one wins, but no warning hides a failure
		}
	}
	out := make(map[Ref]tenant.Status, len(refs))
	if only {
		out = maps.Clone(l.statuses)
	}
	for _, r := range refs {
		e, known := l.memory.Entry(r)
		if !known {
			delete(out, r)
			continue
		}
		st := tenant.Status{
			Schema: tenant.Schema, Gateway: l.Gateway, Cluster: r.Cluster, Name: r.Name,
			UID: e.Record.UID, Generation: e.Record.Generation, Time: l.Clock().UTC(),
		}
		before, known := l.statuses[r]
		if err != nil && known && before.UID == st.UID && before.Generation == st.Generation {
			out[r] = before // nothing new is known of it
			continue
		}
		st.Programmed, st.Reason, st.Message = verdict(e, res, byTenant[r], err)
		if known && sameContent(before, st) {
			st.Time = before.Time
		}
		out[r] = st
	}
	for _, gone := range l.memory.Departing {
		if _, back := out[gone.Ref]; !back {
			out[gone.Ref] = l.departing(gone, res)
		}
	}
	return out
}

// verdict judges one tenant: its first problem, if any, is p, and err is what
// ended the whole pass.
func verdict(e Entry, res result, p plan.Problem, err error) (programmed bool, reason, message string) {
	own, failed := res.failures[plan.TenantID(e.Record.Cluster, e.Record.Name)]
	host, unprotected := res.failures[""]
	switch {
	case err != nil:
		return false, ReasonHostFailed, err.Error()
	case unprotected:
		return false, ReasonHostFailed, host.Err.Error() // nobody is served for sure
	case failed:
		return false, ReasonStepFailed, own.Err.Error()
	case p.Reason == ReasonBadRecord:
		return true, p.Reason, p.Message // the last good content is programmed
	case p.Reason != "" && !p.Warning:
		return false, p.Reason, p.Message
	case e.Held:
		return true, ReasonHeld, heldMessage
	case p.Warning:
		return true, p.Reason, p.Message
	}
	return true, "", ""
}

// departing is the status of a tenant of which the kernel still holds
// something: its addresses must not be given to anybody yet.
func (l *Loop) departing(gone Removal, res result) tenant.Status {
	st := tenant.Status{
		Schema: tenant.Schema, Gateway: l.Gateway, Cluster: gone.Cluster, Name: gone.Name,
		UID: gone.UID, Generation: gone.Generation, Reason: ReasonDeparting, Time: l.Clock().UTC(),
	}
	if f, failed := res.failures[gone.String()]; failed {
		st.Message = f.Err.Error()
	}
	if before, known := l.statuses[gone.Ref]; known && sameContent(before, st) {
		st.Time = before.Time
	}
	return st
}

const heldMessage = "its record vanished together with many others, without a tombstone; it is served on until it returns, is released, or `gateway-agent confirm-removals` is run on the gateway"

func sameContent(a, b tenant.Status) bool {
	a.Time, b.Time = time.Time{}, time.Time{}
	return a == b
}
