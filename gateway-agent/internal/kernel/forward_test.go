// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// forwardGuard returns the chains and hooks of the forward guard.
func forwardGuard(s plan.State) string {
	other := func(id plan.ChainID) bool { return id.Table != "filter" }
	chains, hooks := maps.Clone(s.Chains), maps.Clone(s.Hooks)
	maps.DeleteFunc(chains, func(id plan.ChainID, _ []string) bool { return other(id) })
	maps.DeleteFunc(hooks, func(id plan.ChainID, _ []plan.Hook) bool { return other(id) })
	return fmt.Sprint(chains, hooks)
}

// exitGuardFirst returns steps in the order of versions up to November 2026.
func exitGuardFirst(steps []plan.Step) []plan.Step {
	steps = slices.Clone(steps)
	slices.SortStableFunc(steps, func(a, b plan.Step) int {
		place := func(s plan.Step) int {
			if _, exit := s.(plan.SetGuard); exit {
				return 0
			}
			return 1
		}
		return place(a) - place(b)
	})
	return steps
}

// TestForwardGuardEndsTheLeak: somebody flushes all rules, both guards included,
// under traffic. The first row of steps ends what leaves untranslated, in both
// families and before the exit guard stands, and nothing leaves in any later
// moment. With many tenants that is sooner than the exit guard could do it.
func TestForwardGuardEndsTheLeak(t *testing.T) {
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			l.pods()
			p := l.plane(backend, tenant.IPv6)
			p.in.Tenants = append(p.in.Tenants, l.many(1000).Tenants[2:]...)
			p.serve(t, p.in)
			l.flood(p)
			wire := &leaving{[]*nettest.Recording{l.ext.Record("eth0"), l.ext.RecordIPv6("eth0")}, []int{0, 0}}
			all := slices.Concat(p.in.Tenants[0].EgressIPs, p.in.Tenants[1].EgressIPs)
			flush := func() []plan.Step {
				for _, program := range []string{backend, p.iptables} {
					l.gw.Run(program + " -F; " + program + " -t nat -F")
				}
				l.gw.Run("nft delete table inet egw-guard")
				steps := plan.Diff(l.want(p.in), l.observe())
				if !soon(func() bool { _, wrong := wire.since(all); return len(wrong) >= 2 }) {
					t.Fatal("nothing leaves untranslated without rules: this test shows nothing")
				}
				return steps
			}

			l.gw.Run("conntrack -F 2>/dev/null")
			before, steps := forwardGuard(l.observe()), flush()
			for i, row := range rows(steps) {
				l.apply(row)
				if i == 0 {
					time.Sleep(10 * time.Millisecond) // what has left is recorded
					wire.since(all)
					if _, exit := row[0].(plan.SetGuard); exit || forwardGuard(l.observe()) != before {
						t.Errorf("the first row does not put back the forward guard:\n%s", text(row))
					}
				}
				time.Sleep(10 * time.Millisecond)
				if _, wrong := wire.since(all); len(wrong) > 0 {
					t.Errorf("after row %d, which begins with %s: %v", i, row[0], wrong)
				}
			}

			// As it goes by itself, in either order. The machine may be busy with other things.
			leaves := func(order func([]plan.Step) []plan.Step) (sum int) {
				steps := order(flush())
				wire.since(all)
				l.apply(steps)
				time.Sleep(10 * time.Millisecond)
				_, wrong := wire.since(all)
				for _, n := range wrong {
					sum += n
				}
				return sum
			}
			for attempt := 1; ; attempt++ {
				now, then := leaves(slices.Clone[[]plan.Step]), leaves(exitGuardFirst)
				t.Logf("until all was back %d packets left untranslated, %d where the exit guard is put back first", now, then)
				if now <= then {
					break
				}
				if attempt == 3 {
					t.Error("more leaves than where the exit guard is put back first")
					break
				}
			}
		})
	}
}

// TestForwardGuardIsBackFirst: somebody has flushed the forward guard alone, while
// much else is to be done as well. Nothing else is done before it is back.
func TestForwardGuardIsBackFirst(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		iptables := strings.Split(t.Name(), "/")[1]
		in := l.dual(iptables)
		l.serve(in)
		before := forwardGuard(l.observe())
		stop := l.trafficTo(server, bluePod, "10.128.0.11")
		defer stop()
		l.gw.Run(iptables + " -F; ip6" + iptables[2:] + " -F; ip route flush proto 97; nft delete table netdev egw-neigh; sysctl -qw net.ipv4.conf.all.arp_ignore=0")
		in.Tenants = append(in.Tenants[1:], l.many(200).Tenants[2:]...)
		steps := plan.Diff(l.want(in), l.observe())
		first := rows(steps)[0]
		l.apply(first)
		if after := forwardGuard(l.observe()); after != before {
			t.Errorf("after the first row the forward guard is\n%s\nand was\n%s", after, before)
		}
		for _, s := range first {
			if !plan.ForwardGuard(s) {
				t.Errorf("before the forward guard is back: %s", s)
			}
		}
		l.apply(steps[len(first):])
		if again := plan.Diff(l.want(in), l.observe()); len(again) > 0 {
			t.Errorf("left to do:\n%s", text(again))
		}
		stop()
		l.clean(blue, red)
	})
}

// TestForwardGuardWaitsForNoOtherRules: where the rules of many tenants have to
// come back as well, and nothing lies between, both families' forward guards come
// before any of these.
func TestForwardGuardWaitsForNoOtherRules(t *testing.T) {
	l := newLab(t, "iptables-nft")
	in := l.dual("iptables-nft")
	in.Tenants = append(in.Tenants, l.many(200).Tenants[2:]...)
	l.serve(in)
	l.gw.Run("iptables-nft -F; ip6tables-nft -F; iptables-nft -t nat -F; ip6tables-nft -t nat -F")
	steps := plan.Diff(l.want(in), l.observe())
	if n := len(rows(steps)); n != 1 {
		t.Fatalf("%d rows:\n%s", n, text(steps))
	}
	file := filepath.Join(t.TempDir(), "told")
	monitor := strings.TrimSpace(l.gw.Run("stdbuf -oL nft monitor new rules > " + file + " 2>/dev/null & echo $!"))
	defer l.gw.Try("kill " + monitor)
	told := func() []string {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(string(b), "\n")
	}
	nettest.Wait(t, "nft to tell of new rules", func() bool {
		l.gw.Run("nft add table inet foreign; nft add chain inet foreign c; nft add rule inet foreign c accept; nft delete table inet foreign")
		return len(told()) > 1
	})
	l.apply(steps)
	last := func(what string) int {
		for i, line := range slices.Backward(told()) {
			if strings.Contains(line, what) {
				return i
			}
		}
		return -1
	}
	nettest.Wait(t, "the last rule to be told", func() bool { return last("ip6 nat EGW-S00") > 0 })
	first := slices.IndexFunc(told(), func(s string) bool { return strings.Contains(s, "ip nat EGW-") })
	for _, guard := range []string{"ip filter FORWARD", "ip6 filter FORWARD", "ip6 filter EGW-OUT"} {
		if i := last(guard); i < 0 || i > first {
			t.Errorf("the last rule of %s is number %d, the first of a tenant number %d", guard, i, first)
		}
	}
}
