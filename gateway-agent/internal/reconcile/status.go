// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
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
	statuses := l.statusesOf(res, problems, p.Err)
	l.tellPrograms(statuses, res.touched)
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

// statusesOf says of each tenant whether the kernel holds all that its record
// asks for.
func (l *Loop) statusesOf(res result, problems []plan.Problem, err error) map[Ref]tenant.Status {
	byTenant := map[Ref]plan.Problem{}
	for _, p := range slices.Backward(problems) {
		ref := Ref{p.Cluster, p.Tenant}
		if before, known := byTenant[ref]; !known || !p.Warning || before.Warning {
			byTenant[ref] = p // the first one wins, but no warning hides a failure
		}
	}
	out := map[Ref]tenant.Status{}
	for _, r := range l.memory.Refs() {
		e, _ := l.memory.Entry(r)
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
