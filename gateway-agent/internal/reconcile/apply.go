// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// apply carries out the steps, each row by its executor. After a failure of a
// tenant its later steps are left out, and the others go on. Once something
// that protects all could not be set up, nothing that lets traffic in is made
// any more; what goes still goes. It returns true if it stopped, as somebody else
// has changed a guard meanwhile: that has to be put back before anything else.
func (l *Loop) apply(ctx context.Context, steps []plan.Step, res *result) (disturbed bool) {
	announced := false
	failed := map[string]bool{}
	for id := range res.failures {
		failed[id] = id != ""
	}
	steps = res.allowed(steps, failed)
	for len(steps) > 0 && !disturbed {
		row := plan.Runs(steps)[0]
		steps = steps[len(row.Steps):]
		failures, rest := l.applyRow(ctx, row)
		disturbed = len(rest) > 0
		for _, f := range failures {
			id := f.Step.Tenant()
			l.Log.Error("step failed", "tenant", id, "step", f.Step.String(), "err", f.Err)
			switch _, known := res.failures[id]; {
			case id == "" && !protects(f.Step):
				// A route, or a leftover: no tenant waits for it.
				res.waiting = true
				res.problems = append(res.problems, plan.Problem{Reason: ReasonStepFailed, Message: f.Err.Error()})
			case !known:
				res.failures[id] = f
				failed[id] = id != ""
			}
		}
		announced = announced || row.Executor == plan.Announce
		steps = res.allowed(steps, failed)
	}
	if announced {
		l.Sweep()
	}
	return disturbed
}

// applyAsked is apply, while the network is asked whether somebody has one of the
// addresses of ask: rules and guards do not wait for that. If somebody has, no
// address is claimed and no link is up, and it returns true: there is to be
// another plan, as there is if apply stopped.
func (l *Loop) applyAsked(ctx context.Context, steps []plan.Step, ask []plan.Addr, res *result) (again bool) {
	wait := l.probe(ctx, ask)
	asked := make(map[netip.Addr]bool, len(ask))
	for _, a := range ask {
		asked[a.IP] = true
	}
	cut := slices.IndexFunc(steps, func(s plan.Step) bool {
		if _, raises := s.(plan.RaiseLink); raises {
			return len(asked) > 0
		}
		a, adds := s.(plan.AddAddr)
		return adds && asked[a.Addr.IP]
	})
	if cut < 0 {
		cut = len(steps)
	}
	disturbed := l.apply(ctx, steps[:cut], res)
	if conflict := wait(); conflict || disturbed {
		return true
	}
	return l.apply(ctx, steps[cut:], res)
}

// allowed returns the steps that may still be tried.
func (r *result) allowed(steps []plan.Step, failed map[string]bool) []plan.Step {
	if len(r.failures) == 0 {
		return steps
	}
	steps = plan.Without(steps, failed)
	if _, unprotected := r.failures[""]; unprotected {
		steps = slices.DeleteFunc(steps, letsIn)
	}
	return steps
}

// protects tells the steps that all tenants depend on.
func protects(s plan.Step) bool {
	switch s.(type) {
	case plan.SetGuard, plan.SetNeighbours, plan.SetElements, plan.AddElement, plan.SetSysctl, plan.NewChain, plan.SetChain, plan.SetHook:
		return s.Tenant() == ""
	}
	return false
}

// letsIn tells the steps after which traffic of a tenant arrives.
func letsIn(s plan.Step) bool {
	switch s.(type) {
	case plan.MakeLink, plan.RaiseLink, plan.AddAddr, plan.AnnounceAddr:
		return true
	}
	return false
}

func (l *Loop) applyRow(ctx context.Context, row plan.Run) (failures []Failure, rest []plan.Step) {
	switch row.Executor {
	case plan.Kernel:
		for _, s := range row.Steps {
			l.Log.Debug("step", "tenant", s.Tenant(), "step", s.String())
		}
		return l.Kernel.Apply(ctx, row.Steps)
	case plan.Flows:
		return l.deleteFlows(ctx, row.Steps), nil
	case plan.Announce:
		return l.announce(row.Steps), nil
	default:
		return []Failure{{row.Steps[0], fmt.Errorf("no executor %q", row.Executor)}}, nil
	}
}

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

// deleteFlows deletes for all steps in one go, and tells each that found
// something: someone's connections ended. If it fails, it fails for all: none
// of the tenants may go on to its next step.
func (l *Loop) deleteFlows(ctx context.Context, steps []plan.Step) []Failure {
	matches := make([]FlowMatch, len(steps))
	for i, s := range steps {
		switch s := s.(type) {
		case plan.DeleteEgressFlows:
			matches[i] = FlowMatch{Egress: s.Egress, KeepMark: s.KeepMark, Mask: s.Mask}
		case plan.DeleteMarkFlows:
			matches[i] = FlowMatch{Mark: s.Mark, Mask: s.Mask}
		default:
			return []Failure{{s, errUnknownStep(s)}}
		}
	}
	counts, err := l.Flows.Delete(ctx, matches)
	for i, n := range counts {
		if n > 0 {
			id, step := steps[i].Tenant(), steps[i].String()
			l.Log.Info("connections ended", "tenant", id, "step", step, "count", n)
			l.tell(flushEvent(id, step, n))
		}
	}
	var failures []Failure
	if err != nil {
		for _, s := range steps {
			failures = append(failures, Failure{s, fmt.Errorf("%s: %w", s, err)})
		}
	}
	return failures
}

func errUnknownStep(s plan.Step) error { return fmt.Errorf("step of unknown type %T", s) }
