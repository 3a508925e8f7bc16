// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
)

// checkSysctls is the check that may fail where all sysctls are right already:
// some containers can read them only, and the host sets them.
const checkSysctls = "sysctls"

// preflight returns an error that tells all conditions that are not met.
// unusable is what openState said of the state directory.
func preflight(ctx context.Context, stateDir string, unusable error, k *kernel.Kernel, log *slog.Logger) error {
	var errs []error
	fatal, warning := checkState(stateDir, unusable)
	if fatal != nil {
		errs = append(errs, fatal)
	}
	if warning != nil {
		log.Warn("the state will not last", "err", warning)
	}
	for _, check := range k.Preflight(ctx) {
		if check.Name == checkSysctls && sysctlsHold(ctx, k) {
			log.Warn("sysctls can not be written; they are right now, and will only be watched", "err", check.Err)
			continue
		}
		if check.Partial {
			log.Warn("this machine can not serve everything", "err", check.String())
			continue
		}
		errs = append(errs, errors.New(check.String()))
	}
	if len(errs) > 0 {
		return fmt.Errorf("this machine can not serve as a gateway:\n%w", errors.Join(errs...))
	}
	return nil
}

// sysctlsHold tells whether all sysctls have the values that they need.
func sysctlsHold(ctx context.Context, k *kernel.Kernel) bool {
	host, err := k.Facts(ctx)
	if err != nil {
		return false
	}
	have, err := k.Observe(ctx)
	if err != nil {
		return false
	}
	want, _ := plan.Desired(plan.Input{Host: host})
	for key, value := range want.Sysctls {
		if have.Sysctls[key] != value {
			return false
		}
	}
	return true
}

// laterChecks repeats the preflight while the daemon serves: a default route
// that moves, or rules that appear in the other iptables, defeat it just as well
// as at the start. It belongs to the loop's goroutine.
type laterChecks struct {
	kernel *kernel.Kernel
	every  time.Duration
	last   time.Time
	found  []plan.Problem
	// load returns how many tenants and nodes there are.
	load func() (tenants, nodes int)
	log  *slog.Logger
	said string // of limits that stay low
}

// loadOf counts the tenants and nodes of all clusters.
func loadOf(s *reconcile.Snapshot) (tenants, nodes int) {
	for _, cluster := range s.Memory.Clusters {
		tenants, nodes = tenants+len(cluster.Tenants), nodes+len(cluster.Nodes)
	}
	return tenants, nodes
}

// limits raises what can be raised, says once what can not, and returns what
// is nearly full.
func (l *laterChecks) limits() []plan.Problem {
	said := ""
	for _, low := range l.kernel.RaiseLimits(l.load()) {
		said += fmt.Sprintf("%s is %d and should be %d: %v; ", low.Key, low.Value, low.Wants, low.Err)
	}
	if said != l.said && said != "" {
		l.log.Info("limits of the machine could not be raised from here; a problem is reported when they are near", "limits", said)
	}
	l.said = said
	checks, err := l.kernel.NearlyFull()
	if err != nil {
		l.log.Warn("the tables of the kernel can not be looked at", "err", err)
	}
	var out []plan.Problem
	for _, check := range checks {
		out = append(out, plan.Problem{Reason: "TableNearlyFull", Message: check.String()})
	}
	return out
}

// problems returns what the latest check found; it checks once in every.
func (l *laterChecks) problems(ctx context.Context) []plan.Problem {
	if now := time.Now(); now.Sub(l.last) >= l.every {
		l.last, l.found = now, l.limits()
		for _, check := range l.kernel.Preflight(ctx) {
			if check.Name != checkSysctls {
				l.found = append(l.found, plan.Problem{Reason: reason(check), Message: check.String()})
			}
		}
	}
	return l.found
}

// reason is the word for a check that fails while the daemon serves.
func reason(c kernel.Check) string {
	if c.Name == kernel.CheckBroadcast {
		return "BroadcastCopied"
	}
	return "Preflight"
}
