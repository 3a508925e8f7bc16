// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// apply carries out the steps, each row by its executor. After a failure of a
// tenant its later steps are left out; after one of the host nothing more is
// tried, because what comes later relies on what came before.
func (l *Loop) apply(ctx context.Context, steps []plan.Step, res *result) {
	announced := false
	failed := map[string]bool{}
	for len(steps) > 0 {
		row := plan.Runs(steps)[0]
		steps = steps[len(row.Steps):]
		for _, f := range l.applyRow(ctx, row) {
			id := f.Step.Tenant()
			l.Log.Error("step failed", "tenant", id, "step", f.Step.String(), "err", f.Err)
			switch {
			case isRoute(f.Step):
				// It concerns the pods of one node; the tenants go on.
				res.waiting = true
				res.problems = append(res.problems, plan.Problem{Reason: ReasonRoute, Message: f.message()})
			case !failed[id]:
				failed[id], res.failures[id] = true, f
			}
		}
		announced = announced || row.Executor == plan.Announce
		if failed[""] {
			break
		}
		steps = plan.Without(steps, failed)
	}
	if announced {
		l.Sweep()
	}
}

func isRoute(s plan.Step) bool {
	switch s.(type) {
	case plan.SetRoute, plan.DelRoute:
		return true
	}
	return false
}

func (l *Loop) applyRow(ctx context.Context, row plan.Run) []Failure {
	switch row.Executor {
	case plan.Kernel:
		return l.applyToKernel(ctx, row.Steps)
	case plan.Flows:
		return l.deleteFlows(ctx, row.Steps)
	case plan.Announce:
		return l.announce(row.Steps)
	default:
		return []Failure{{row.Steps[0], fmt.Errorf("no executor %q", row.Executor)}}
	}
}

// applyToKernel hands steps to the kernel, in portions. What protects all goes
// alone: if a guard or a sysctl can not be set, nothing after it is tried. So
// does each route: it concerns one node only. Anything else goes together,
// because the kernel loads many rules at the price of one.
func (l *Loop) applyToKernel(ctx context.Context, steps []plan.Step) []Failure {
	var failures []Failure
	for len(steps) > 0 {
		n := portion(steps)
		for _, s := range steps[:n] {
			l.Log.Debug("step", "tenant", s.Tenant(), "step", s.String())
		}
		failed := l.Kernel.Apply(ctx, steps[:n])
		failures = append(failures, failed...)
		if slices.ContainsFunc(failed, Failure.ofHost) {
			return failures
		}
		steps = steps[n:]
		for _, f := range failed {
			if id := f.Step.Tenant(); id != "" {
				steps = plan.Without(steps, map[string]bool{id: true})
			}
		}
	}
	return failures
}

// portion returns how many of steps go to the kernel together; at least one.
func portion(steps []plan.Step) int {
	if alone(steps[0]) {
		return 1
	}
	if n := slices.IndexFunc(steps, alone); n > 0 {
		return n
	}
	return len(steps)
}

func alone(s plan.Step) bool {
	switch s.(type) {
	case plan.SetGuard, plan.SetElements, plan.SetSysctl:
		return true
	}
	return isRoute(s)
}

// ofHost tells the failures of steps that all tenants depend on.
func (f Failure) ofHost() bool { return f.Step == nil || f.Step.Tenant() == "" && !isRoute(f.Step) }

func (l *Loop) announce(steps []plan.Step) []Failure {
	var failures []Failure
	for _, s := range steps {
		if a, ok := s.(plan.AnnounceAddr); ok {
			l.Announcer.Announce(plan.Addr{Dev: a.Dev, IP: a.IP})
		} else {
			failures = append(failures, Failure{s, errUnknownStep(s)})
		}
	}
	return failures
}

// deleteFlows tells each deletion that found something: someone's connections
// ended.
func (l *Loop) deleteFlows(ctx context.Context, steps []plan.Step) []Failure {
	var failures []Failure
	failed := map[string]bool{}
	for _, s := range steps {
		if failed[s.Tenant()] {
			continue
		}
		var n int
		var err error
		switch s := s.(type) {
		case plan.DeleteEgressFlows:
			n, err = l.Flows.DeleteByEgressIP(ctx, s.Egress, s.KeepMark, s.Mask)
		case plan.DeleteMarkFlows:
			n, err = l.Flows.DeleteByMark(ctx, s.Mark, s.Mask)
		default:
			err = errUnknownStep(s)
		}
		if err != nil {
			failed[s.Tenant()] = true
			failures = append(failures, Failure{s, err})
		}
		if n > 0 {
			l.Log.Info("connections ended", "tenant", s.Tenant(), "step", s.String(), "count", n)
			l.tell(flushEvent(s.Tenant(), s.String(), n))
		}
	}
	return failures
}

func errUnknownStep(s plan.Step) error { return fmt.Errorf("step of unknown type %T", s) }
