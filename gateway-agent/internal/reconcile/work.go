// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"reflect"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// The kinds of passes, by what they compare with the kernel.
const (
	PassWhole = "whole" // everything
	PassPart  = "part"  // what a change of some tenants is about
	PassNone  = "none"  // nothing: neither what is wanted nor the kernel has changed
)

// planned is what the last pass planned.
type planned struct {
	// done says that all of it is in the kernel: nothing failed, nothing waits.
	done     bool
	in       plan.Input // without tenants
	problems []plan.Problem
	addrs    map[plan.Addr]string // wanted, with their tenants
}

// work is what a pass has to do.
type work struct {
	kind  string
	in    plan.Input // without tenants
	steps []plan.Step
	// want and have are the states that were compared.
	want, have plan.State
	problems   []plan.Problem
	addrs      map[plan.Addr]string
}

// plan decides what to do. A change of few tenants is planned without a look at
// all others, if the kernel is otherwise as the last pass has left it.
func (l *Loop) plan(in plan.Input, sight Sight, d *delta, afresh bool) work {
	before := l.planned
	changed, others := d.tenants()
	defer l.reindex(d, changed)
	if afresh || !sight.Same || !before.done || others || !sameBase(before.in, in) || len(in.Conflicts) > 0 {
		return l.whole(in, sight.State)
	}
	if len(changed) == 0 && reflect.DeepEqual(before.in.Spills, in.Spills) {
		return work{kind: PassNone, in: in, problems: before.problems, addrs: before.addrs}
	}
	was, will, ok := l.index.Part(before.in, in, changed, before.problems)
	if !ok {
		return l.whole(in, sight.State)
	}
	return partOf(was, will, in, sight.State, before, changed)
}

// sameBase tells whether two inputs differ in nothing but tenants and what
// belongs to single ones. Nodes and networks were compared before.
func sameBase(a, b plan.Input) bool { return reflect.DeepEqual(a.Host, b.Host) }

// reindex brings the index to what was planned.
func (l *Loop) reindex(d *delta, changed map[string]*plan.Numbered) {
	if d == nil {
		return
	}
	for _, c := range d.Clusters {
		if c == nil { // it went with its tenants
			l.begin(l.memory)
			return
		}
	}
	for id, t := range changed {
		l.index.Set(id, t)
	}
}

func (l *Loop) whole(in plan.Input, have plan.State) work {
	in.Tenants = tenantsOf(l.memory)
	want, problems := plan.Desired(in)
	in.Tenants = nil
	return work{kind: PassWhole, in: in, steps: plan.Diff(want, have), want: want, have: have, problems: problems, addrs: want.Addrs}
}

func partOf(was, will, in plan.Input, have plan.State, before planned, changed map[string]*plan.Numbered) work {
	old, _ := plan.Desired(was)
	want, problems := plan.Desired(will)
	part := plan.Restrict(have, old, want)
	w := work{kind: PassPart, in: in, steps: plan.Diff(want, part), want: want, have: part, addrs: before.addrs}
	for _, p := range before.problems {
		if _, changes := changed[plan.TenantID(p.Cluster, p.Tenant)]; !changes {
			w.problems = append(w.problems, p)
		}
	}
	for _, p := range problems {
		if _, changes := changed[plan.TenantID(p.Cluster, p.Tenant)]; changes {
			w.problems = append(w.problems, p)
		}
	}
	for a := range old.Addrs {
		delete(w.addrs, a)
	}
	for a, owner := range want.Addrs {
		w.addrs[a] = owner
	}
	return w
}

// note keeps what was planned for the next pass.
func (l *Loop) note(w work, res result) {
	l.planned = planned{done: res.complete(), in: w.in, problems: w.problems, addrs: w.addrs}
	if len(w.steps) > 0 && l.unverified.IsZero() {
		l.unverified = l.Clock()
	}
}
