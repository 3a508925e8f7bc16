// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

const (
	blue = "192.168.55.113"
	red  = "192.168.55.114"
)

// expect checks which source the server sees, over UDP and TCP.
func expect(t *testing.T, n *nettest.Net, pod, want string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got := n.Seen(network, pod, server); got != want {
			t.Errorf("%s from %s: the server saw %q, want %s", network, pod, got, want)
		}
	}
}

func eachBackend(t *testing.T, test func(t *testing.T, l *lab)) {
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, backend)
			l.pods()
			test(t, l)
		})
	}
}

func TestTenantsLeaveWithTheirAddress(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.serve(l.input())
		for _, pod := range []string{"10.128.0.10", "10.128.0.11"} {
			expect(t, l.node1, pod, map[string]string{"10.128.0.10": blue, "10.128.0.11": red}[pod])
		}
		expect(t, l.node2, "10.128.2.10", blue)
		expect(t, l.node2, "10.128.2.11", red)

		in := l.input()
		in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
		l.serve(in)
		expect(t, l.node1, "10.128.0.10", red)
		expect(t, l.node2, "10.128.2.11", blue)

		in.Tenants = in.Tenants[:1]
		l.serve(in)
		expect(t, l.node1, "10.128.0.10", red)
		l.clean(blue, red)
	})
}

// TestForeignThingsSurvive puts others' rules, routes, addresses and links next
// to ours, some of them looking alike, and compares them before and after.
func TestForeignThingsSurvive(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		iptables := strings.Split(t.Name(), "/")[1]
		l.gw.Run(iptables + ` -A FORWARD -i docker0 -j ACCEPT
			` + iptables + ` -P FORWARD DROP
			` + iptables + ` -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE
			` + iptables + ` -t mangle -A POSTROUTING -o egress0 -j MARK --set-mark 1
			` + iptables + ` -N FOREIGN
			` + iptables + ` -A FOREIGN -s 10.9.9.9/32 -j DROP
			ip address add 192.168.55.200/32 dev enp7s0
			ip route add 10.200.0.0/16 via 192.168.99.21
			ip route add 10.201.0.0/16 via 192.168.99.21 proto static
			ip link add egress0 type veth peer name egress1
			nft add table inet foreign`)
		look := func() string {
			return l.gw.Run(iptables + `-save | grep -e ^-A -e ^: | cut -d[ -f1 | sort | grep -v EGW-
				ip -o address show dev enp7s0 | grep -v :egw
				ip route | grep -v 'proto 97'
				ip -o link | grep -v ': eg00' | cut -d: -f2
				nft list table inet foreign`)
		}
		before := look()
		l.serve(l.input())
		expect(t, l.node1, "10.128.0.10", blue)
		if after := look(); after != before {
			t.Errorf("foreign things changed:\n%s\nwere:\n%s", after, before)
		}
		l.reach(plan.State{})
		if after := look(); after != before {
			t.Errorf("cleanup changed foreign things:\n%s\nwere:\n%s", after, before)
		}
		if left := l.gw.Run("(" + iptables + "-save; ip link; ip address; ip route; nft list ruleset 2>/dev/null) | grep -e EGW -e eg00 -e ':egw' -e 'proto 97' -e egw- || true"); left != "" {
			t.Errorf("cleanup left:\n%s", left)
		}
	})
}

// TestDeletedPiecesComeBack takes away one piece after the other by hand.
func TestDeletedPiecesComeBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		iptables := strings.Split(t.Name(), "/")[1]
		l.serve(l.input())
		before := l.observe()
		for _, damage := range []string{
			iptables + " -D FORWARD -j EGW-FWD",
			iptables + " -I FORWARD -j ACCEPT",
			iptables + " -t nat -F POSTROUTING",
			iptables + " -t nat -F EGW-M00",
			"nft flush map inet egw-guard links4",
			"nft delete element inet egw-guard translate4 { 0x100000 : 192.168.55.113 }",
			"nft delete element inet egw-guard translate4 { 0x100000 : 192.168.55.113 }; nft add element inet egw-guard translate4 { 0x100000 : 192.168.55.114 }",
			iptables + " -t nat -F EGW-S00",
			iptables + " -A EGW-OUT -j ACCEPT",
			iptables + " -F; " + iptables + " -X",
			"nft delete table inet egw-guard",
			"nft flush chain inet egw-guard exit",
			"nft flush set inet egw-guard owners4",
			"nft delete element inet egw-guard pods4 { 10.128.0.0/14 }",
			"nft delete table netdev egw-neigh",
			"nft flush chain netdev egw-neigh in",
			"nft delete element netdev egw-neigh link4 { 192.168.99.13 : 02:00:c0:a8:63:0d }",
			"ip link set eg001 type macvlan bcqueuelen 1000",
			"ip link delete eg001",
			"ip link set eg001 down",
			"ip link set eg001 address 02:00:00:00:00:01",
			"ip link set eg001 alias ''",
			"ip address delete 192.168.99.13/32 dev eg001",
			"ip address add 192.168.99.17/32 dev eg001",
			"ip address delete 192.168.55.113/32 dev enp7s0",
			"ip address add 192.168.55.119/32 dev enp7s0 label enp7s0:egw",
			"ip route delete 10.128.0.0/23",
			"ip route replace 10.128.0.0/23 via 192.168.99.22 proto 97",
			"sysctl -w net.ipv4.conf.all.arp_ignore=0",
			"sysctl -w net.ipv4.ip_forward=0",
		} {
			l.gw.Run(damage)
			steps := l.serve(l.input())
			if len(steps) == 0 {
				t.Errorf("%q: nothing was repaired", damage)
			}
			if d := plan.Diff(before, l.observe()); len(d) > 0 {
				t.Errorf("%q: still to be done:\n%s", damage, text(d))
			}
			if got := l.node1.Seen("udp", "10.128.0.10", server); got != blue {
				t.Errorf("%q: the server saw %s", damage, got)
			}
		}
		l.clean(blue, red)
	})
}

// TestCountersSurvive checks that a change of one tenant leaves the counters of
// another's rules alone.
func TestCountersSurvive(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		iptables := strings.Split(t.Name(), "/")[1]
		l.serve(l.input())
		l.gw.Run("nft flush map inet egw-guard links4; nft flush map inet egw-guard translate4") // they answer ahead of the rules
		expect(t, l.node1, "10.128.0.11", red)
		count := func() string {
			return l.gw.Run(iptables + "-save -c | grep -e demo/ns-red")
		}
		before := count()
		if !strings.Contains(before, "[2:") {
			t.Fatalf("red's two connections are not counted:\n%s", before)
		}
		in := l.input()
		in.Tenants[0].EgressIPs = addrs("192.168.55.115")
		in.Tenants = append(in.Tenants, numbered(3, "ns-new", "192.168.99.15", "192.168.55.116"))
		l.serve(in)
		if after := count(); after != before {
			t.Errorf("counters changed:\n%s\nwere:\n%s", after, before)
		}
		if counters := l.counters(); counters.Tenants["demo/ns-red"].FromPods.Packets < 4 || len(counters.Guards) == 0 {
			t.Errorf("counters: %+v", counters)
		}
	})
}

// TestOneBadTenantDoesNotStopOthers lets the kernel refuse one tenant.
func TestOneBadTenantDoesNotStopOthers(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.gw.Run("ip link add eg001 type veth peer name other0") // takes blue's name
		want, _ := plan.Desired(l.input())
		var failures []kernel.Failure
		for _, run := range plan.Runs(plan.Diff(want, l.observe())) {
			if run.Executor == plan.Kernel {
				l.gw.Do(func() {
					failed, _ := l.kernel.Apply(context.Background(), run.Steps)
					failures = append(failures, failed...)
				})
			}
		}
		if len(failures) != 1 || failures[0].Step.Tenant() != "demo/ns-blue" {
			t.Errorf("failures: %v", failures)
		}
		expect(t, l.node1, "10.128.0.11", red)
		if out := l.gw.Run("ip -o link show eg001"); !strings.Contains(out, "eg001@") || strings.Contains(out, "macvlan") {
			t.Errorf("the foreign link changed: %s", out)
		}

		// A rule that the tool refuses, within a batch that has good ones too.
		bad := plan.AddRule{Of: "demo/ns-bad", ID: plan.ChainID{Family: 4, Table: "nat", Name: "EGW-S00"}, Rule: "-m nonsense -j SNAT"}
		good := plan.AddRule{Of: "demo/ns-good", ID: bad.ID, Rule: `-m mark --mark 0x500000/0xfff00000 -m comment --comment "demo/ns-good" -j SNAT --to-source 192.168.55.119`}
		l.gw.Do(func() { failures, _ = l.kernel.Apply(context.Background(), []plan.Step{bad, good, good}) })
		if len(failures) != 1 || failures[0].Step != plan.Step(bad) {
			t.Errorf("failures: %v", failures)
		}
		if got := l.observe().Chains[bad.ID]; len(got) != 3 {
			t.Errorf("rules: %q", got)
		}
	})
}

func TestBackendIsStated(t *testing.T) {
	for program, want := range map[string]string{"iptables-nft": "(nf_tables)", "iptables-legacy": "(legacy)"} {
		if got := newLab(t, program).kernel.Backend(); !strings.HasSuffix(got, " "+want) || got[0] < '0' || got[0] > '9' {
			t.Errorf("%s says %q, want a version and %s", program, got, want)
		}
	}
}

func TestPreflight(t *testing.T) {
	l := newLab(t, "iptables-nft")
	check := func(want string) {
		t.Helper()
		var got []string
		l.gw.Do(func() {
			for _, c := range l.kernel.Preflight(context.Background()) {
				got = append(got, c.Name)
				t.Log(c)
			}
		})
		if fmt.Sprint(got) != want {
			t.Errorf("failed checks: %v, want %s", got, want)
		}
	}
	check("[]")
	l.gw.Run("ip route replace default via 192.168.99.21 dev enp1s0")
	check("[default route]")
	l.gw.Run("ip route delete default")
	check("[default route]")
	l.gw.Run("ip route add default via 192.168.55.13; iptables-legacy -A FORWARD -j ACCEPT")
	check("[iptables]")
	l.gw.Run("iptables-legacy -F")
	check("[]")
	l.gw.Run("ip link set enp1s0 down")
	check("[internal interface]")
	l.gw.Run("ip link delete enp7s0")
	check("[internal interface external interface]")
}
