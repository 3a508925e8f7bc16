// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// TestLegacyRulesAreReadWhenTheyChanged: rules of iptables-legacy are not written
// down again while they are as they were, whatever traffic they count, and
// whatever the agent itself has made of them; a change of another hand is seen,
// if it be of one letter.
func TestLegacyRulesAreReadWhenTheyChanged(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	for _, name := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		script := "#!/bin/sh\necho >> " + log + "\nexec " + real + " \"$@\"\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	l := newLab(t, "iptables-legacy")
	l.pods()
	p := l.plane("iptables-legacy", tenant.IPv6)
	p.serve(t, p.in)
	reads := func() int {
		out, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(log, 0); err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(out), "\n")
	}
	reads()
	p.expect(t, p.bluePod, p.blue)
	expect(t, l.node1, bluePod, blue)
	if seen := l.look(); !seen.Same || reads() > 0 {
		t.Error("the rules were read again after traffic")
	}
	in := p.in
	in.Tenants = in.Tenants[:1]
	l.apply(plan.Diff(l.want(in), l.look().State))
	if seen := l.look(); !seen.Same || reads() > 0 {
		t.Error("the rules were read again after a change by the agent")
	}
	for _, change := range []string{
		"iptables-legacy -t nat -R EGW-SNAT 2 -o enp7t0 -j EGW-S",
		"ip6tables-legacy -R EGW-FWD 2 -s fd01::/47 -j EGW-OUT",
		"ip6tables-legacy -t nat -F",
		"iptables-legacy -D FORWARD -j EGW-FWD",
	} {
		l.look()
		reads()
		l.gw.Run(change)
		seen := l.look()
		if seen.Same || reads() != 1 {
			t.Errorf("%s: not seen, or both families were read", change)
		}
		if steps := plan.Diff(l.want(in), seen.State); len(steps) == 0 {
			t.Errorf("%s: nothing is to be repaired", change)
		} else {
			l.apply(steps)
		}
	}
	if again := plan.Diff(l.want(in), l.observe()); len(again) > 0 {
		t.Errorf("left to do:\n%s", text(again))
	}
}
