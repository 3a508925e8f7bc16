// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// later is when steps ask again whether the guards stand.
const later = 60 * time.Millisecond

// try applies the kernel's steps among steps, and returns those that it left.
func (l *lab) try(t *testing.T, steps []plan.Step) []plan.Step {
	t.Helper()
	time.Sleep(later)
	var mine, rest []plan.Step
	for _, s := range steps {
		if s.Executor() == plan.Kernel {
			mine = append(mine, s)
		}
	}
	var failures []kernel.Failure
	l.gw.Do(func() { failures, rest = l.kernel.Apply(context.Background(), mine) })
	for _, f := range failures {
		t.Error(f.Err)
	}
	return rest
}

// TestStepsStopWhereAGuardIsChanged: steps that were planned for guards that stand
// are not carried out once somebody has changed one of them, and nothing else
// stops them.
func TestStepsStopWhereAGuardIsChanged(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		iptables := strings.Split(t.Name(), "/")[1]
		in := l.dual(iptables)
		l.serve(in)
		gone := in
		gone.Tenants = in.Tenants[:1]
		for _, damage := range []string{
			"nft flush chain inet egw-guard exit",
			"nft flush chain inet egw-guard denied",
			"nft insert rule inet egw-guard exit accept",
			"nft delete table inet egw-guard",
			"nft flush set inet egw-guard pods6",
			"nft flush set inet egw-guard owners4",
			iptables + " -F EGW-OUT",
			"ip6" + iptables[2:] + " -D EGW-FWD 1",
			iptables + " -D FORWARD -j EGW-FWD",
			iptables + " -I FORWARD -j ACCEPT",
		} {
			steps := plan.Diff(l.want(gone), l.observe())
			l.gw.Run(damage)
			if rest := l.try(t, steps); len(rest) == 0 || len(plan.Diff(l.want(in), l.observe())) == 0 {
				t.Errorf("%s: the steps were carried out", damage)
			}
			l.gw.Try(iptables + " -D FORWARD -j ACCEPT")
			l.serve(in)
		}

		// What the steps themselves change is no change by somebody else, and neither
		// is what others change in their own rules.
		for i, step := range [][]plan.Step{plan.Diff(l.want(gone), l.observe()), nil} {
			if i == 1 {
				step = plan.Diff(l.want(in), l.observe())
			}
			for n, row := range rows(step) {
				if n%2 == i {
					l.gw.Run("nft add table inet foreign; nft add chain inet foreign c; nft delete table inet foreign")
				}
				if rest := l.try(t, row); len(rest) > 0 {
					t.Fatalf("row %d stopped before %s", n, rest[0])
				}
			}
		}
		if again := plan.Diff(l.want(in), l.observe()); len(again) > 0 {
			t.Errorf("left to do:\n%s", text(again))
		}
	})
}
