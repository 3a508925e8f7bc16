// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"encoding/binary"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// onWire is what an IPv4 packet says, as a machine beside the gateway hears it.
type onWire struct {
	src, dst     netip.Addr
	protocol     byte
	sport, dport uint16
}

func read(p []byte) onWire {
	w := onWire{src: netip.AddrFrom4([4]byte(p[12:16])), dst: netip.AddrFrom4([4]byte(p[16:20])), protocol: p[9]}
	if l4 := p[int(p[0]&0xf)*4:]; len(l4) >= 4 && (w.protocol == unix.IPPROTO_TCP || w.protocol == unix.IPPROTO_UDP) {
		w.sport, w.dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	}
	return w
}

// guardCase says what a guard is needed for: cause makes something go wrong,
// provoke sends, and wrong tells the packets that must not get to a wire.
type guardCase struct {
	name string
	// cause is what goes wrong, on the gateway: something that the guard is there
	// for, such as that somebody deleted another guard.
	cause string
	// rules and chains are the guard: rules of the nftables table by name, chains
	// of iptables as "table chain". Where several are named, each of them stops
	// the packets alone, for a reason of its own.
	rules, chains []string
	provoke       func()
	at            *nettest.Recording
	wrong         func(w onWire) bool
}

// TestEachGuardIsNeeded: whatever goes wrong, nothing gets out with the guard,
// and something does without. A guard for which that does not hold is either
// broken or dead weight.
func TestEachGuardIsNeeded(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		mgmt := nettest.New(t)
		l.gw.Wire("mgmt0", mgmt, "eth0")
		l.gw.Run("ip address add 172.30.0.12/24 dev mgmt0; ip route add 203.0.113.99/32 via 172.30.0.1")
		mgmt.Run("ip address add 172.30.0.1/24 dev eth0")
		l.gw.Echo("0.0.0.0:7")
		l.pod(l.node1, "172.31.0.5", "192.168.99.13") // of a pod network that nobody told of
		l.node1.Run("ip route add 203.0.113.10/32 via 192.168.99.12")
		iptables := strings.Split(t.Name(), "/")[1]
		cases := guardCases(l, mgmt)
		l.serve(l.input())
		for line := range strings.Lines(l.gw.Run("nft -a list table inet " + plan.GuardTable)) {
			m := guardRule.FindStringSubmatch(line)
			if m != nil && strings.Contains(line, "drop") && !strings.HasSuffix(m[1], "IPv6") &&
				!slices.ContainsFunc(cases, func(c guardCase) bool { return slices.Contains(c.rules, m[1]) }) {
				t.Errorf("no case shows what the rule %q is needed for", m[1])
			}
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				l.serve(l.input())
				l.gw.Run("conntrack -F 2>/dev/null")
				l.node1.Run("ip neigh flush all nud permanent; ip neigh flush all")
				if c.cause != "" {
					l.gw.Run(strings.ReplaceAll(c.cause, "IPTABLES", iptables))
				}
				count := func() int {
					before := len(c.at.Packets())
					c.provoke()
					n := 0
					for _, p := range c.at.Packets()[before:] {
						if c.wrong(read(p)) {
							n++
						}
					}
					return n
				}
				if n := count(); n != 0 {
					t.Errorf("%d wrong packets with the guard", n)
				}
				l.without(t, c, iptables)
				if n := count(); n == 0 {
					t.Error("no wrong packet without the guard: either it is not needed, or this test shows nothing")
				}
			})
		}
	})
}

// guardRule finds a rule of the guard table in what nft lists.
var guardRule = regexp.MustCompile(`comment "(.*) #[0-9a-f]+" # handle (\d+)`)

// without takes the guard of c away.
func (l *lab) without(t *testing.T, c guardCase, iptables string) {
	t.Helper()
	for _, chain := range c.chains {
		table, name, _ := strings.Cut(chain, " ")
		l.gw.Run(iptables + " -t " + table + " -F " + name)
	}
	found := map[string]bool{}
	chain := ""
	listing := ""
	if len(c.rules) > 0 {
		listing = l.gw.Run("nft -a list table inet " + plan.GuardTable)
	}
	for line := range strings.Lines(listing) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "chain" {
			chain = fields[1]
		}
		if m := guardRule.FindStringSubmatch(line); m != nil && slices.Contains(c.rules, m[1]) {
			l.gw.Run("nft delete rule inet " + plan.GuardTable + " " + chain + " handle " + m[2])
			found[m[1]] = true
		}
	}
	for _, r := range c.rules {
		if !found[r] {
			t.Fatalf("the guard has no rule %q", r)
		}
	}
}

func guardCases(l *lab, mgmt *nettest.Net) []guardCase {
	outside, node1, node2, other := l.ext.Record("eth0"), l.node1.Record("eth0"), l.node2.Record("eth0"), mgmt.Record("eth0")
	send := func(from *nettest.Net, source, to string) func() {
		return func() {
			for _, network := range []string{"udp", "tcp"} {
				_ = from.Seen(network, source, to)
			}
		}
	}
	from := func(src string) func(onWire) bool {
		return func(w onWire) bool { return w.src.String() == src }
	}
	pod := send(l.node1, bluePod, server)
	const noForwardGuard = "IPTABLES -F EGW-FWD"
	return []guardCase{
		{name: "forward guard, for packets that nobody marked", cause: "nft delete table inet egw-guard; IPTABLES -t mangle -F EGW-MARK",
			chains: []string{"filter EGW-OUT"}, provoke: pod, at: outside, wrong: from(bluePod)},
		{name: "forward guard, for packets past the tenant's link", cause: "nft delete table inet egw-guard",
			chains: []string{"filter EGW-OUT"}, provoke: func() { l.stale(l.node1, "192.168.99.13"); pod() }, at: outside, wrong: from(bluePod)},
		{name: "exit guard, for packets past the tenant's link", cause: noForwardGuard,
			rules: []string{"pod source IPv4"}, provoke: func() { l.stale(l.node1, "192.168.99.13"); pod() }, at: outside, wrong: from(bluePod)},
		{name: "exit guard, for marked packets without a SNAT rule", cause: "IPTABLES -t nat -F EGW-S00",
			rules: []string{"pod source IPv4", "source not the tenant's IPv4", "tenant link untracked"}, provoke: pod, at: outside, wrong: from(bluePod)},
		{name: "exit guard, for another's masquerade", cause: "IPTABLES -t nat -F EGW-S00; IPTABLES -t nat -A POSTROUTING -o enp7s0 -j MASQUERADE",
			rules: []string{"source not the tenant's IPv4", "tenant link untracked"}, provoke: pod, at: outside,
			wrong: func(w onWire) bool { return w.src.String() == "192.168.55.12" && w.dport == 7 }},
		{name: "exit guard, for a pod network that nobody told of", cause: "IPTABLES -t nat -D POSTROUTING -o enp7s0 -j MASQUERADE; IPTABLES -t mangle -F EGW-MARK; " + noForwardGuard,
			rules: []string{"tenant link without mark", "tenant link untracked"}, provoke: send(l.node1, "172.31.0.5", server), at: outside, wrong: from("172.31.0.5")},
		{name: "exit guard, for a node's own packets",
			rules: []string{"node source IPv4"}, provoke: send(l.node1, "192.168.99.21", server), at: outside, wrong: from("192.168.99.21")},
		{name: "exit guard, for replies to a node without a route", cause: noForwardGuard + "; ip route del 10.128.0.0/23",
			rules: []string{"reply without a way back", "pod destination IPv4", "source not the tenant's IPv4"}, provoke: pod, at: outside, wrong: from("203.0.113.10")},
		{name: "exit guard, for a third NIC", cause: noForwardGuard,
			rules: []string{"tenant link to another NIC", "pod source IPv4"}, provoke: send(l.node1, bluePod, "203.0.113.99:7"), at: other, wrong: from(bluePod)},
		{name: "exit guard, for the hairpin", cause: "IPTABLES -t nat -F EGW-SNAT",
			rules: []string{"tenant link hairpin untranslated", "pod source IPv4"}, provoke: send(l.node1, bluePod, "192.168.99.22:7"), at: node2, wrong: from(bluePod)},
		{name: "forward guard, from outside to pods",
			chains: []string{"filter EGW-EXT"}, provoke: send(l.ext, "192.168.55.13", bluePod+":7"), at: node1, wrong: from("192.168.55.13")},
		{name: "forward guard, from outside to nodes",
			chains: []string{"filter EGW-NODES"}, provoke: send(l.ext, "192.168.55.13", "192.168.99.21:7"), at: node1, wrong: from("192.168.55.13")},
		{name: "input guard, for services of the VM at an egress IP",
			rules: []string{"egress IP IPv4"}, provoke: send(l.ext, "192.168.55.13", blue+":7"), at: outside, wrong: func(w onWire) bool { return w.sport == 7 }},
		{name: "input guard, for a gateway IP from outside",
			rules: []string{"gateway IP from outside IPv4"}, provoke: send(l.ext, "192.168.55.13", "192.168.99.13:7"), at: outside, wrong: func(w onWire) bool { return w.sport == 7 }},
		{name: "input guard, for services of the VM at a gateway IP",
			rules: []string{"tenant link"}, provoke: send(l.node1, bluePod, "192.168.99.13:7"), at: node1,
			wrong: func(w onWire) bool { return w.sport == 7 && w.src.String() == "192.168.99.13" }},
	}
}

// TestHandOverNeedsBothGuards: when an address changes hands, the connections of
// its former holder are deleted, and the owners of the exit guard stop those
// that were not. Each does it alone; without both, the former holder goes on
// with an address that is another's.
func TestHandOverNeedsBothGuards(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		iptables := strings.Split(t.Name(), "/")[1]
		owners := guardCase{rules: []string{"source not the tenant's IPv4"}}
		out := l.ext.Record("eth0")
		for _, c := range []struct {
			name            string
			deletes, owners bool
		}{{"both", true, true}, {"no owners", true, false}, {"no deletion", false, true}, {"neither", false, false}} {
			in := l.input()
			l.serve(in)
			l.gw.Run("conntrack -F 2>/dev/null")
			flow := l.dial(t, l.node1, "udp", bluePod)
			if got, err := nettest.Ask(flow); got != blue {
				t.Fatalf("%s: before, the server saw %q, %v", c.name, got, err)
			}
			if !c.owners {
				l.without(t, owners, iptables)
			}
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
			want, _ := plan.Desired(in)
			steps := plan.Diff(want, l.observe())
			steps = slices.DeleteFunc(steps, func(s plan.Step) bool {
				_, repairs := s.(plan.SetGuard)
				return repairs && !c.owners || s.Executor() == plan.Flows && !c.deletes
			})
			l.apply(steps)
			before := len(out.Packets())
			for range 3 {
				_, _ = nettest.Ask(flow)
			}
			wrong := 0
			for _, p := range out.Packets()[before:] {
				if w := read(p); w.src.String() == blue && w.dport == 7 {
					wrong++
				}
			}
			if leaks := !c.deletes && !c.owners; (wrong > 0) != leaks {
				t.Errorf("%s: %d packets of the former holder left with the address; leak expected: %v", c.name, wrong, leaks)
			}
		}
	})
}
