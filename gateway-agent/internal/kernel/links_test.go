// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"slices"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestALinkTakesNothingUntilItIsRaised: a link is made long before all that its
// tenant needs is there. Until it is raised, the NIC does not know its MAC.
func TestALinkTakesNothingUntilItIsRaised(t *testing.T) {
	l := newLab(t, "iptables")
	in := l.input()
	l.serve(in)
	in.Tenants = append(in.Tenants, numbered(3, "ns-green", "192.168.99.15", "192.168.55.115"))
	want := l.want(in)
	mac := want.Links["eg003"].MAC
	steps := plan.Diff(want, l.look().State)
	raise := slices.IndexFunc(steps, func(s plan.Step) bool { _, raises := s.(plan.RaiseLink); return raises })
	known := func() bool { return strings.Contains(l.gw.Run("bridge fdb show dev enp1s0"), mac) }

	l.apply(steps[:raise])
	if have := l.look().State.Links["eg003"]; have.MAC != mac || have.Ready {
		t.Errorf("made: %+v", have)
	}
	if out := l.gw.Run("ip link show eg003"); strings.Contains(out, "UP") || known() {
		t.Errorf("up before it is raised, or the NIC takes frames for %s:\n%s", mac, out)
	}
	// As after a crash, and with all that was done before it.
	l.apply(plan.Diff(want, l.observe()))
	if have := l.look().State.Links["eg003"]; have != want.Links["eg003"] || !known() {
		t.Errorf("raised: %+v, want %+v; the NIC knows its MAC: %t", have, want.Links["eg003"], known())
	}
	if again := plan.Diff(want, l.observe()); len(again) > 0 {
		t.Errorf("still to do:\n%s", text(again))
	}
}

// TestATenantsNumberChanges: for a moment there are two links with the same MAC,
// one of them down.
func TestATenantsNumberChanges(t *testing.T) {
	l := newLab(t, "iptables")
	in := l.input()
	l.pods()
	l.serve(in)
	in.Tenants[0].Number = 0xabc
	l.apply(plan.Diff(l.want(in), l.look().State))
	if got := l.node1.Seen("udp", "10.128.0.10", server); got != "192.168.55.113" {
		t.Errorf("seen as %q", got)
	}
	if again := plan.Diff(l.want(in), l.observe()); len(again) > 0 {
		t.Errorf("still to do:\n%s", text(again))
	}
}
