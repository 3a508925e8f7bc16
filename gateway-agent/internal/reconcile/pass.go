// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// Reasons of a Status that is not programmed.
const (
	ReasonStepFailed = "StepFailed"     // a step of this very tenant failed
	ReasonHostFailed = "HostStepFailed" // a step that all depend on failed
	ReasonDeparting  = "RemovalFailed"  // removed from service, but not from the kernel
)

// Reasons of problems of the host.
const (
	ReasonNotSaved  = "StateNotSaved"        // the disk copy could not be written
	ReasonNoAddress = "InternalNICNoAddress" // nothing is on the link
)

// maxRuns is how often a pass looks, plans and begins again. What is left then
// waits for the next pass, as after a failure.
const maxRuns = 4

// pass brings the kernel to what is wanted now. It reports whether all of it
// succeeded; what failed is in the snapshot and the log.
func (l *Loop) pass(ctx context.Context) bool {
	began := l.Clock()
	result, err := l.run(ctx)
	if errors.Is(err, errGaveWay) { // to a change: this is the pass for it
		began = l.Clock()
		result, err = l.run(ctx)
	}
	for runs := 1; result.again && err == nil && runs < maxRuns; runs++ {
		first := result
		result, err = l.run(ctx)
		result.add(first)
	}
	clear(l.free)
	if err != nil {
		l.Log.Error("pass failed", "err", err)
	}
	p := Pass{Began: began, Kind: result.kind, Duration: l.Clock().Sub(began), Steps: result.steps, Failed: result.failed(err), Err: err}
	l.publish(result, p)
	if l.OnPass != nil {
		l.OnPass(p)
	}
	return err == nil && result.complete()
}

// result is what a pass came to.
type result struct {
	host     plan.Host
	problems []plan.Problem
	failures map[string]Failure // first failure by TenantID; "" is the host
	waiting  bool               // something else is missing that a retry may find
	steps    int
	touched  map[string]bool // the tenants that had steps, by TenantID
	kind     string
	again    bool // it stopped: another host has an address, or a guard was changed
}

// add takes in what came before r in the same pass.
func (r *result) add(first result) {
	r.steps += first.steps
	for id := range first.touched {
		r.touched[id] = true
	}
	r.waiting = r.waiting || r.again
}

// failed counts what failed, by kind. err ended the pass.
func (r result) failed(err error) map[string]int {
	out := map[string]int{}
	if err != nil {
		out[FailedRead] = 1
	}
	for id := range r.failures {
		if id == "" {
			out[FailedHost]++
		} else {
			out[FailedTenant]++
		}
	}
	if r.waiting {
		out[FailedOther] = 1
	}
	return out
}

func (r result) complete() bool { return len(r.failures) == 0 && !r.waiting && !r.again }

func (l *Loop) run(ctx context.Context) (result, error) {
	res := result{failures: map[string]Failure{}, touched: map[string]bool{}}
	confirmed, err := l.Store.Confirmed()
	if err != nil {
		l.Log.Error("the operator's confirmation can not be read; it is dropped", "err", err)
		confirmed = map[Ref]string{}
	}
	sight, afresh, err := l.look(ctx)
	if err != nil {
		return res, err
	}
	res.host = sight.Host
	l.rememberOnLink(&res)
	changes := l.merge(l.Views(), sight.State, confirmed, &res)
	in := baseOf(l.memory, res.host)
	if l.Spills != nil {
		in.Spills = l.Spills()
	}
	w := l.plan(in, sight, changes, afresh)
	conflicts, ask := l.unclaimed(w.want, sight.State, res.host)
	if len(conflicts) > 0 {
		in.Conflicts = conflicts
		w = l.whole(in, sight.State)
		_, ask = l.unclaimed(w.want, sight.State, res.host)
		res.waiting = true // the address may become free
	}
	l.carryOut(ctx, w, ask, &res)
	if res.again {
		return res, nil
	}
	if w.kind != PassNone {
		l.keepAnnouncing(w.addrs, sight.State, res.failures)
	}
	l.tellRemovals(res.failures)
	return res, nil
}

// merge takes over what the bus shows, on disk first, and returns what differs.
func (l *Loop) merge(views map[string]View, have plan.State, confirmed map[Ref]string, res *result) *delta {
	if changes, known := l.mergeKnown(views, confirmed, have); known {
		if !l.save(changes, false, res) {
			return nil
		}
		l.seen = seenNow(views)
		return changes
	}
	merged := Merge(l.memory, views, l.Group, confirmed)
	merged.number(have)
	changes := compare(l.memory, merged.Memory)
	res.problems = append(res.problems, merged.Refused...)
	for _, v := range views {
		if v.Confirmed {
			l.damaged = nil // the bus knows what the disk had lost
		}
	}
	if l.seen = nil; !l.save(changes, confirmed != nil, res) {
		return nil
	}
	if merged.final() {
		l.seen = seenNow(views)
	}
	l.tellHeld(merged.Held)
	return changes
}

// mergeKnown returns what is new if that concerns some tenants only, without a
// look at the others.
func (l *Loop) mergeKnown(views map[string]View, confirmed map[Ref]string, have plan.State) (changes *delta, known bool) {
	cluster, ok := l.seen.news(views)
	if !ok || confirmed != nil {
		return nil, false
	}
	if cluster == "" {
		return nil, true
	}
	changes, ok = mergeChange(l.memory, cluster, views[cluster], l.Group)
	if ok {
		changes.assignNumbers(l.memory, have)
	}
	return changes, ok
}

// carryOut does the work, and keeps what came of it.
func (l *Loop) carryOut(ctx context.Context, w work, ask []plan.Addr, res *result) {
	res.problems = append(res.problems, w.problems...)
	res.kind = w.kind
	if res.steps = len(w.steps); res.steps > 0 {
		l.Log.Info("changing the kernel", "steps", len(w.steps), "first", w.steps[0].String())
	}
	for _, s := range w.steps {
		res.touched[s.Tenant()] = true
	}
	res.again = l.applyAsked(ctx, w.steps, ask, res)
	l.note(w, *res)
}

// rememberOnLink keeps the subnets of the internal NIC while it has none: a NIC
// that loses its address for a moment must not take all tenants down.
func (l *Loop) rememberOnLink(res *result) {
	// A NIC that waits for DHCP may have given itself an address meanwhile.
	res.host.OnLink = slices.DeleteFunc(slices.Clone(res.host.OnLink), func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	for _, f := range tenant.Families() {
		if len(f.Prefixes(res.host.OnLink)) > 0 || len(f.Prefixes(l.onLink)) == 0 {
			continue
		}
		res.host.OnLink = append(res.host.OnLink, f.Prefixes(l.onLink)...)
		res.problems = append(res.problems, plan.Problem{Reason: ReasonNoAddress, Message: fmt.Sprintf(
			"%s has no %s address any more; going on with %v, which it had", res.host.Internal, f, f.Prefixes(l.onLink))})
	}
	if len(res.host.OnLink) == 0 {
		res.waiting = true
		res.problems = append(res.problems, plan.Problem{Reason: ReasonNoAddress, Message: fmt.Sprintf(
			"%s has no address; no gateway IP can be reached there", res.host.Internal)})
	}
	l.onLink = res.host.OnLink
}

// save makes changes of the memory those in force, on disk first: a number or a
// generation that the kernel has seen must never be lost. If the disk does not
// take them, the pass goes on with what the disk has; the running tenants are
// still repaired.
func (l *Loop) save(changes *delta, confirmed bool, res *result) bool {
	known := l.onDisk || len(l.memory.Clusters) > 0 || changes != nil && len(changes.Clusters) > 0
	if known {
		if _, err := l.Store.Save(l.memory, changes); err != nil {
			l.Log.Error("the disk copy could not be written; changes wait until it can", "err", err)
			res.problems = append(res.problems, plan.Problem{Reason: ReasonNotSaved,
				Message: err.Error() + "; changes are not programmed until the state directory is writable again"})
			res.waiting = true
			return false
		}
	}
	l.take(changes)
	l.onDisk = known
	if confirmed {
		if err := l.Store.DropConfirmed(); err != nil {
			l.Log.Error("the operator's confirmation stays; it is harmless", "err", err)
		}
	}
	return true
}

// take changes the memory, and what was made from it.
func (l *Loop) take(changes *delta) {
	if changes == nil {
		return
	}
	l.altered = true
	for _, list := range [][]Removal{l.memory.Departing, changes.Departing} {
		for _, gone := range list {
			l.concerns[gone.Ref] = true
		}
	}
	for cluster, c := range changes.Clusters {
		if c == nil {
			l.clear = false // it goes with its tenants
			continue
		}
		for name := range c.Tenants {
			l.concerns[Ref{cluster, name}] = true
		}
	}
	changes.apply(&l.memory)
}

// InputOf is the plan's input for memory m.
func InputOf(m Memory, host plan.Host) plan.Input {
	in := baseOf(m, host)
	in.Tenants = tenantsOf(m)
	return in
}

func tenantsOf(m Memory) (out []plan.Numbered) {
	for _, c := range m.Clusters {
		out = slices.Grow(out, len(c.Tenants))
		for _, e := range c.Tenants {
			out = append(out, e.numbered())
		}
	}
	return out
}

// baseOf is InputOf without the tenants.
func baseOf(m Memory, host plan.Host) plan.Input {
	in := plan.Input{Host: host}
	for _, name := range sortedKeys(m.Clusters) {
		c := m.Clusters[name]
		for _, node := range sortedKeys(c.Nodes) {
			in.Nodes = append(in.Nodes, c.Nodes[node])
		}
		if c.Network != nil {
			in.Networks = append(in.Networks, *c.Network)
		}
	}
	return in
}

// keepAnnouncing names the addresses that are in place: all wanted ones but
// those whose tenant failed before they were there.
func (l *Loop) keepAnnouncing(want map[plan.Addr]string, have plan.State, failures map[string]Failure) {
	_, hostFailed := failures[""]
	keep := make([]plan.Addr, 0, len(want))
	for a, owner := range want {
		_, there := have.Addrs[a]
		if _, failed := failures[owner]; there || !failed && !hostFailed {
			keep = append(keep, a)
		}
	}
	if len(keep) == len(l.kept) && !slices.ContainsFunc(keep, func(a plan.Addr) bool { return !l.kept[a] }) {
		return
	}
	l.kept = make(map[plan.Addr]bool, len(keep))
	for _, a := range keep {
		l.kept[a] = true
	}
	slices.SortFunc(keep, func(a, b plan.Addr) int { return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.IP.Compare(b.IP)) })
	l.Announcer.Keep(keep)
}

// tell hands events to the audit; what it can not keep is at least in the log.
func (l *Loop) tell(events ...Event) {
	if len(events) == 0 {
		return
	}
	if err := l.Audit.EmitAll(events); err != nil && !errors.Is(err, context.Canceled) {
		l.Log.Error("audit events lost", "count", len(events), "err", err)
	}
}
