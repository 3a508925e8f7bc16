// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// errUnprotected is the failure of steps that would let traffic in while a
// guard or a sysctl that has to hold before could not be set.
var errUnprotected = errors.New("not tried: the protection that has to stand before could not be set up")

// Apply carries out steps whose executor is plan.Kernel, in their order. Rows
// of rule steps are loaded at once; if that fails, each is tried by itself, so
// that one tenant does not keep the others. A tenant's steps after its first
// failure are not tried and not reported. Without steps it does nothing.
// Carrying out a step that was carried out before is no error. Once a step that
// protects all tenants has failed, no link, no address and no element of the
// guard is added before the next look.
//
// It stops where somebody else has changed a guard since the last look, and
// returns the rest of the steps: they were planned for a guard that stands.
func (k *Kernel) Apply(ctx context.Context, steps []plan.Step) (failures []Failure, rest []plan.Step) {
	defer k.rules.begin()()
	a := applier{k: k, ctx: ctx, failed: make(map[string]bool)}
	k.hearOthers()
	defer k.hear() // what the steps have changed
	for len(steps) > 0 {
		if k.disturbed(ctx) {
			return a.failures, steps
		}
		kind, n := rowOf(steps)
		row := a.still(steps[:n])
		steps = steps[n:]
		if len(row) == 0 {
			continue
		}
		switch kind {
		case kindGuard:
			if row = a.protected(row); len(row) == 0 {
				continue
			}
			a.row(row, func(ctx context.Context, steps []plan.Step) error {
				return k.following(steps, 1, func() error { return k.applyGuard(ctx, steps) })
			}, k.singleGuard)
		case kindRule:
			a.rules(row)
		case kindDelLink:
			a.delLinks(row)
		case kindRequest:
			a.requests(row)
		default:
			a.fail(row[0], a.other(row[0]))
		}
	}
	return a.failures, nil
}

// The kinds of steps that are carried out in rows.
type kind int

const (
	kindOther kind = iota
	kindGuard
	kindRule
	kindDelLink
	kindRequest
)

// rowOf returns how many of the steps are carried out at once, and their kind.
func rowOf(steps []plan.Step) (k kind, n int) {
	k, n = batch(steps[0]), 1
	if k == kindRequest {
		return k, requestRow(steps)
	}
	for k != kindOther && n < len(steps) && batch(steps[n]) == k {
		n++
	}
	return k, n
}

func batch(s plan.Step) kind {
	switch {
	case requestable(s):
		return kindRequest
	case plan.IsRule(s):
		return kindRule
	case plan.NFTLines(s) != nil:
		return kindGuard
	}
	if _, ok := s.(plan.DelLink); ok {
		return kindDelLink
	}
	return kindOther
}

// applier is one call of Apply.
type applier struct {
	k        *Kernel
	ctx      context.Context
	failures []Failure
	failed   map[string]bool // by tenant
	// counts are what the kernel has counted, by tenant number, once it was read.
	counts map[int][]counted
}

func (a *applier) fail(s plan.Step, err error) {
	if err == nil {
		return
	}
	a.failures = append(a.failures, Failure{s, fmt.Errorf("%s: %w", s, err)})
	if id := s.Tenant(); id != "" {
		a.failed[id] = true
		return
	}
	switch s.(type) {
	case plan.SetGuard, plan.SetNeighbours, plan.SetElements, plan.SetSysctl, plan.SetChain, plan.NewChain, plan.SetHook:
		a.k.unprotected = true
	}
}

func (a *applier) still(steps []plan.Step) []plan.Step {
	if len(a.failed) == 0 {
		return steps
	}
	return plan.Without(steps, a.failed)
}

// protected returns the steps that can be tried: without the guard nothing is
// added to it.
func (a *applier) protected(steps []plan.Step) []plan.Step {
	if !a.k.unprotected {
		return steps
	}
	var out []plan.Step
	for _, s := range steps {
		if _, adds := s.(plan.AddElement); adds && !a.failed[s.Tenant()] {
			a.fail(s, errUnprotected)
		} else if !adds {
			out = append(out, s)
		}
	}
	return out
}

// hearOthers takes in what others have changed since the last look, for the next
// one to tell.
func (k *Kernel) hearOthers() {
	if k.hear() {
		k.missed = true
	}
}

func (a *applier) delLinks(row []plan.Step) {
	one := func(_ context.Context, s plan.Step) error { return a.k.delLink(s.(plan.DelLink).Name) }
	if len(row) == 1 {
		a.fail(row[0], one(a.ctx, row[0]))
		return
	}
	a.row(row, func(_ context.Context, steps []plan.Step) error { return a.k.delLinks(steps) }, one)
}

// along is how many rule steps the forward guard takes along in its call of
// iptables-restore, which takes 3 ms, and 10 to 20 us for each step.
const along = 100

// rules carries out a row of rule steps. A forward guard that is to be put back
// waits for no long list of other rules, its own family's or the other's.
func (a *applier) rules(row []plan.Step) {
	n := 0
	for n < len(row) && plan.ForwardGuard(row[n]) {
		n++
	}
	if n > 0 && len(row)-n > along {
		a.families(row[:n])
		row = a.still(row[n:])
	}
	a.families(row)
}

// families cuts a row of rule steps by family.
func (a *applier) families(row []plan.Step) {
	for _, f := range tenant.Families() {
		var mine []plan.Step
		for _, s := range row {
			if family, _ := plan.RuleFamily(s); family == f {
				mine = append(mine, s)
			}
		}
		if len(mine) == 0 {
			continue
		}
		t := a.k.tables[f]
		if t == nil {
			for _, s := range mine {
				a.fail(s, fmt.Errorf("%s is off on this machine", f))
			}
			continue
		}
		a.row(mine, func(ctx context.Context, steps []plan.Step) error { return a.k.load(ctx, t, steps) }, t.single)
	}
}

// row carries out steps at once, or, if that fails, one by one.
func (a *applier) row(steps []plan.Step, all func(context.Context, []plan.Step) error, one func(context.Context, plan.Step) error) {
	err := all(a.ctx, steps)
	if err == nil {
		return
	}
	a.k.log.Warn("a batch was refused; its steps are tried one by one", "steps", len(steps), "err", err)
	for _, s := range steps {
		if a.failed[s.Tenant()] {
			continue
		}
		if err := one(a.ctx, s); err != nil {
			a.fail(s, err)
		} else {
			a.k.seen.carry(s)
		}
	}
}

// singleGuard carries out one guard step; an element that is gone, or there
// already, is no error.
func (k *Kernel) singleGuard(ctx context.Context, step plan.Step) error {
	err := k.applyGuard(ctx, []plan.Step{step})
	if err == nil {
		return nil
	}
	switch step.(type) {
	case plan.DelElement, plan.DelGuard, plan.DelNeighbour, plan.DelNeighbours:
		if isMissing(err) {
			return nil
		}
	}
	return err
}

func (a *applier) other(step plan.Step) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	switch s := step.(type) {
	case plan.SetSysctl:
		err := a.k.writeSysctl(s.Key, s.Value)
		if err == nil && a.k.sysctls != nil {
			a.k.sysctls[s.Key] = s.Value
		}
		return err
	case plan.MakeLink:
		if a.k.unprotected {
			return errUnprotected
		}
		a.forgetCounts(s.Link)
		return a.k.makeLink(s.Link)
	case plan.RaiseLink:
		if a.k.unprotected {
			return errUnprotected
		}
		return a.k.raiseLink(s.Name)
	case plan.DelLink:
		return a.k.delLink(s.Name)
	case plan.AddAddr:
		if a.k.unprotected {
			return errUnprotected
		}
		return a.k.addAddr(s.Addr)
	case plan.DelAddr:
		return a.k.delAddr(s.Addr)
	case plan.SetRoute:
		return a.k.setRoute(s.Route, s.Replace)
	case plan.DelRoute:
		return a.k.delRoute(s.Route)
	}
	return fmt.Errorf("%T is no step of the kernel", step)
}
