// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

func TestLoopHandMadeDamage(t *testing.T) {
	damages := map[string]func(*plan.State){
		"link": func(s *plan.State) {
			delete(s.Links, "eg001")
			delete(s.Addrs, plan.Addr{Dev: "eg001", IP: record("b", 13).GatewayIPs[0]})
		},
		"egress":     func(s *plan.State) { delete(s.Addrs, plan.Addr{Dev: "enp7s0", IP: record("b", 13).EgressIPs[0]}) },
		"routes":     func(s *plan.State) { clear(s.Routes) },
		"guard":      func(s *plan.State) { s.Guard = plan.Guard{} },
		"neighbours": func(s *plan.State) { s.Neighbours = plan.Neighbours{} },
		"chains":     func(s *plan.State) { clear(s.Chains); clear(s.Hooks) },
		"hooks":      func(s *plan.State) { clear(s.Hooks) },
		"sysctls":    func(s *plan.State) { maps.Copy(s.Sysctls, map[string]string{"net/ipv4/ip_forward": "0"}) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.show(1, blueAndRed(), node("n1", 0))
			b.mustPass()
			damage(&b.kernel.state)
			if len(b.mustPass()) == 0 {
				t.Error("not noticed")
			}
			b.want("addresses", bothAddrs, b.kernel.addrs())
			b.want("routes", []string{"10.128.0.0/23 via 192.168.99.20"}, b.kernel.routes())
			b.settled()
		})
	}
}

// TestLoopCrashAnywhere kills the process after each number of steps of a
// change that adds, moves and removes. A new life has to reach the same end.
func TestLoopCrashAnywhere(t *testing.T) {
	before := many(4)
	after := with(without(before, "t01"), func(m map[string]tenant.Tenant) {
		moved := m["t02"]
		moved.Generation, moved.EgressIPs = 2, record("x", 120).EgressIPs
		m["t02"] = moved
		gone := tombstone(m["t03"])
		m["t03"] = gone
		m["heir"] = tenantWith(record("heir", 130), before["t03"].EgressIPs[0]) // takes over t03's address
	})
	nodes := []tenant.Node{node("n1", 1), node("n3", 2)}
	build := func(t *testing.T) *bench {
		b := newBench(t)
		b.show(1, before, node("n1", 0), node("n2", 1))
		b.mustPass()
		return b
	}
	reference := build(t)
	reference.show(2, after, nodes...)
	steps := len(reference.mustPass())
	if steps < 20 {
		t.Fatalf("only %d steps; the change is too small to prove anything", steps)
	}
	for k := range steps {
		b := build(t)
		b.show(2, after, nodes...)
		b.kernel.crashAfter = k
		b.pass()
		b.kernel.crashAfter = -1
		b.start() // the bus is not there yet
		b.mustPass()
		b.show(2, after, nodes...)
		b.mustPass()
		b.want(fmt.Sprintf("addresses after a crash at step %d", k), reference.kernel.addrs(), b.kernel.addrs())
		b.want(fmt.Sprintf("routes after a crash at step %d", k), reference.kernel.routes(), b.kernel.routes())
		for _, name := range []string{"t01", "t03"} {
			if !strings.Contains(strings.Join(b.audit.told(EventRemoved), " "), "removed/uid-"+name+"/1") {
				t.Errorf("crash at step %d: the removal of %s was never told", k, name)
			}
		}
		b.settled()
		if t.Failed() {
			return
		}
	}
}

func tenantWith(t tenant.Tenant, egress netip.Addr) tenant.Tenant {
	t.EgressIPs = []netip.Addr{egress}
	return t
}
