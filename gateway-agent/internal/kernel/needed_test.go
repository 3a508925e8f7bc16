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
	"egress-gateway.io/shared/tenant"
)

// onWire is what a packet says, as a machine beside the gateway hears it.
type onWire struct {
	src, dst     netip.Addr
	protocol     byte
	sport, dport uint16
	offset       uint16 // of a fragment, in bytes
	more         bool   // fragments are to follow
}

func read(p []byte) onWire {
	var w onWire
	var l4 []byte
	if p[0]>>4 == 4 {
		field := binary.BigEndian.Uint16(p[6:])
		w = onWire{src: netip.AddrFrom4([4]byte(p[12:16])), dst: netip.AddrFrom4([4]byte(p[16:20])), protocol: p[9],
			offset: field & 0x1fff * 8, more: field&0x2000 != 0}
		l4 = p[int(p[0]&0xf)*4:]
	} else {
		w = onWire{src: netip.AddrFrom16([16]byte(p[8:24])), dst: netip.AddrFrom16([16]byte(p[24:40])), protocol: p[6]}
		l4 = p[40:]
		if w.protocol == unix.IPPROTO_FRAGMENT && len(l4) >= 8 {
			field := binary.BigEndian.Uint16(l4[2:])
			w.protocol, w.offset, w.more, l4 = l4[0], field&^7, field&1 != 0, l4[8:]
		}
	}
	if len(l4) >= 4 && w.offset == 0 && (w.protocol == unix.IPPROTO_TCP || w.protocol == unix.IPPROTO_UDP) {
		w.sport, w.dport = binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	}
	return w
}

// guardCase says what a guard is needed for: cause makes something go wrong,
// provoke sends, and wrong tells the packets that must not get to a wire.
type guardCase struct {
	name string
	// cause is what goes wrong, on the gateway: something that the guard is there
	// for, such as that somebody deleted another guard. The next pass mends it, but
	// for what undo does.
	cause, undo string
	// rules and chains are the guard: rules of the nftables table by name, chains
	// of iptables as "table chain". Where several are named, each of them stops
	// the packets alone, for a reason of its own.
	rules, chains []string
	// outside are rules of the chain EGW-EXT, by how they begin.
	outside []string
	provoke func()
	at      *nettest.Recording
	wrong   func(w onWire) bool
}

// TestEachGuardIsNeeded: whatever goes wrong, nothing gets out with the guard,
// and something does without. A guard for which that does not hold is either
// broken or dead weight. Where it is several rules, each of them stops all alone.
func TestEachGuardIsNeeded(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		mgmt := nettest.New(t)
		l.gw.Wire("mgmt0", mgmt, "eth0")
		l.gw.Run("ip address add 172.30.0.12/24 dev mgmt0; ip route add 203.0.113.99/32 via 172.30.0.1")
		mgmt.Run("ip address add 172.30.0.1/24 dev eth0")
		l.gw.Run("ip address add fd00:172::12/64 dev mgmt0 nodad; ip route add 2001:db8:99::99/128 via fd00:172::1")
		mgmt.Run("ip address add fd00:172::1/64 dev eth0 nodad")
		p.echo(l.gw)
		third, stranger := "203.0.113.99", "172.31.0.5" // beyond a third NIC; of a pod network that nobody told of
		if p.family == tenant.IPv6 {
			third, stranger = "2001:db8:99::99", "fd02::5"
		}
		l.pod(l.node1, stranger, p.blueGateway)
		l.node1.Run(p.ip() + " route add " + p.server + " via " + p.vm)
		cases := p.guardCases(mgmt, third, stranger)
		p.serve(t, p.in)
		other := map[tenant.Family]string{tenant.IPv4: "IPv6", tenant.IPv6: "IPv4"}[p.family]
		for line := range strings.Lines(l.gw.Run("nft -a list table inet " + plan.GuardTable)) {
			m := guardRule.FindStringSubmatch(line)
			if m != nil && strings.Contains(line, "counter") && !strings.Contains(line, "update") && !strings.HasSuffix(m[1], other) &&
				!slices.ContainsFunc(cases, func(c guardCase) bool { return slices.Contains(c.rules, m[1]) }) {
				t.Errorf("no case shows what the rule %q is needed for", m[1])
			}
		}
		for line := range strings.Lines(l.gw.Run(p.iptables + " -S EGW-EXT")) {
			rule, drops := strings.CutSuffix(strings.TrimSpace(strings.TrimPrefix(line, "-A EGW-EXT ")), " -j DROP")
			if drops && !slices.ContainsFunc(cases, func(c guardCase) bool {
				return slices.ContainsFunc(c.outside, func(begin string) bool { return strings.HasPrefix(rule, begin) })
			}) {
				t.Errorf("no case shows what the rule %q of EGW-EXT is needed for", rule)
			}
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				begin := func() {
					p.serve(t, p.in)
					l.gw.Run("conntrack -F 2>/dev/null")
					l.node1.Run("ip neigh flush all nud permanent; ip neigh flush all")
					l.gw.Run(strings.ReplaceAll(c.cause, "IPTABLES", p.iptables))
				}
				end := func() { l.gw.Run(strings.ReplaceAll(c.undo, "IPTABLES", p.iptables)) }
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
				begin()
				defer end()
				if n := count(); n != 0 {
					t.Errorf("%d wrong packets with the guard", n)
				}
				for alone, others := range c.others() {
					l.without(t, others, p.iptables)
					if n := count(); n != 0 {
						t.Errorf("%d wrong packets with the rule %q alone", n, alone)
					}
					end()
					begin()
				}
				l.without(t, c, p.iptables)
				n := 0
				for tries := 0; n == 0 && tries < 5; tries++ { // a busy machine may lose one
					n = count()
				}
				if n == 0 {
					t.Error("no wrong packet without the guard: either it is not needed, or this test shows nothing")
				}
			})
		}
	})
}

// others returns, for each rule of a guard that is several, all but that one.
func (c guardCase) others() map[string]guardCase {
	out := make(map[string]guardCase)
	if len(c.rules)+len(c.outside) < 2 {
		return out
	}
	but := func(list []string, one string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == one })
	}
	for _, one := range slices.Concat(c.rules, c.outside) {
		out[one] = guardCase{rules: but(c.rules, one), outside: but(c.outside, one)}
	}
	return out
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
	for _, begin := range c.outside {
		n := 0
		for line := range strings.Lines(l.gw.Run(iptables + " -S EGW-EXT")) {
			if rule, ok := strings.CutPrefix(line, "-A "); ok && strings.HasPrefix(rule, "EGW-EXT "+begin) {
				l.gw.Run(iptables + " -D " + rule)
				n++
			}
		}
		if n == 0 {
			t.Fatalf("EGW-EXT has no rule %q", begin)
		}
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

// sending opens connections from source; of UDP it sends one packet.
func sending(from *nettest.Net, source, to string) func() {
	return func() {
		if c, err := from.Dial("udp", source, at(to, 7)); err == nil {
			_, _ = c.Write([]byte("?"))
			defer c.Close()
		}
		_ = from.Seen("tcp", source, at(to, 7))
	}
}

// sentBy picks packets by their source.
func sentBy(src string) func(onWire) bool {
	return func(w onWire) bool { return w.src.String() == src }
}

// guardCases are about packets from blue's pod, to an address beyond a third NIC
// too, and from a stranger in a pod network that nobody told of.
func (p plane) guardCases(mgmt *nettest.Net, third, stranger string) []guardCase {
	l := p.l
	outside, node1, node2, other := p.record(l.ext, "eth0"), p.record(l.node1, "eth0"), p.record(l.node2, "eth0"), p.record(mgmt, "eth0")
	send, from := sending, sentBy
	pod := send(l.node1, p.bluePod, p.server)
	past := func() { p.stale(p.blueGateway); pod() }
	podSource, notOwned := p.rule("pod source"), p.rule("source not the tenant's")
	const noForwardGuard = "IPTABLES -F EGW-FWD"
	noTranslation := "IPTABLES -t nat -F EGW-S00; nft flush map inet egw-guard " + p.set("translate")
	route := p.in.Nodes[0].Subnets[0].String()
	if p.family == tenant.IPv6 {
		route = p.in.Nodes[0].Subnets[1].String()
	}
	return append(p.outsideCases(outside, node1, other, stranger), []guardCase{
		{name: "forward guard, for packets that nobody marked", cause: "nft delete table inet egw-guard; IPTABLES -t nat -F EGW-MARK",
			chains: []string{"filter EGW-OUT"}, provoke: pod, at: outside, wrong: from(p.bluePod)},
		{name: "forward guard, for packets past the tenant's link", cause: "nft delete table inet egw-guard",
			chains: []string{"filter EGW-OUT"}, provoke: past, at: outside, wrong: from(p.bluePod)},
		{name: "exit guard, for packets past the tenant's link", cause: noForwardGuard,
			rules: []string{podSource}, provoke: past, at: outside, wrong: from(p.bluePod)},
		{name: "exit guard, for marked packets without a SNAT rule", cause: noTranslation,
			rules: []string{podSource, notOwned, "tenant link untracked"}, provoke: pod, at: outside, wrong: from(p.bluePod)},
		{name: "exit guard, for another's masquerade", cause: noTranslation + "; IPTABLES -t nat -A POSTROUTING -o enp7s0 -j MASQUERADE",
			undo:  "IPTABLES -t nat -D POSTROUTING -o enp7s0 -j MASQUERADE",
			rules: []string{notOwned, "tenant link untracked"}, provoke: pod, at: outside,
			wrong: func(w onWire) bool { return w.src.String() == p.own && w.dport == 7 }},
		{name: "exit guard, for a pod network that nobody told of", cause: "IPTABLES -t nat -F EGW-MARK; nft flush map inet egw-guard " + p.set("links") + "; " + noForwardGuard,
			rules: []string{"tenant link without mark", "tenant link untracked"}, provoke: send(l.node1, stranger, p.server), at: outside, wrong: from(stranger)},
		{name: "exit guard, for what somebody keeps from connection tracking", cause: "IPTABLES -t raw -A PREROUTING -i eg+ -j CT --notrack; " + noForwardGuard,
			undo:  "IPTABLES -t raw -D PREROUTING -i eg+ -j CT --notrack",
			rules: []string{"tenant link untracked"}, provoke: send(l.node1, stranger, p.server), at: outside, wrong: from(stranger)},
		{name: "exit guard, for the same towards the nodes", cause: "IPTABLES -t raw -A PREROUTING -i eg+ -j CT --notrack; " + noForwardGuard,
			undo:  "IPTABLES -t raw -D PREROUTING -i eg+ -j CT --notrack",
			rules: []string{"tenant link hairpin untracked"}, provoke: send(l.node1, stranger, p.node2), at: node2, wrong: from(stranger)},
		{name: "exit guard, for a node's own packets",
			rules: []string{p.rule("node source")}, provoke: send(l.node1, p.node1, p.server), at: outside, wrong: from(p.node1)},
		{name: "exit guard, for replies to a node without a route", cause: noForwardGuard + "; " + p.ip() + " route del " + route,
			rules: []string{"reply without a way back", p.rule("pod destination"), notOwned}, provoke: pod, at: outside,
			// The server says TCP packets again to a pod that left untranslated in another case.
			wrong: func(w onWire) bool { return w.src.String() == p.server && w.protocol == unix.IPPROTO_UDP }},
		{name: "exit guard, for refusals to a pod without a route", cause: p.ip() + " route del " + route,
			rules: []string{p.rule("pod destination")}, provoke: past, at: outside, wrong: func(w onWire) bool { return w.dst.String() == p.bluePod }},
		{name: "exit guard, for a third NIC", cause: noForwardGuard,
			rules: []string{"tenant link to another NIC"}, provoke: send(l.node1, stranger, third), at: other, wrong: from(stranger)},
		{name: "exit guard, for the hairpin", cause: "IPTABLES -t nat -F EGW-SNAT",
			rules: []string{"tenant link hairpin untranslated"}, provoke: send(l.node1, stranger, p.node2), at: node2, wrong: from(stranger)},
		{name: "input guard, for services of the VM at an egress IP",
			rules: []string{p.rule("egress IP")}, provoke: send(l.ext, p.outside, p.blue), at: outside, wrong: func(w onWire) bool { return w.sport == 7 }},
		{name: "input guard, for a gateway IP from outside",
			rules: []string{p.rule("gateway IP from outside")}, provoke: send(l.ext, p.outside, p.blueGateway), at: outside, wrong: func(w onWire) bool { return w.sport == 7 }},
		{name: "input guard, for services of the VM at a gateway IP",
			rules: []string{"tenant link"}, provoke: send(l.node1, p.bluePod, p.blueGateway), at: node1,
			wrong: func(w onWire) bool { return w.sport == 7 && w.src.String() == p.blueGateway }},
	}...)
}

// TestHandOverNeedsBothGuards: when an address changes hands, the connections of
// its former holder are deleted, and the owners of the exit guard stop those
// that were not. Each does it alone; without both, the former holder goes on
// with an address that is another's.
func TestHandOverNeedsBothGuards(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		owners := guardCase{rules: []string{p.rule("source not the tenant's")}}
		out := p.record(l.ext, "eth0")
		for _, c := range []struct {
			name            string
			deletes, owners bool
		}{{"both", true, true}, {"no owners", true, false}, {"no deletion", false, true}, {"neither", false, false}} {
			in := p.in
			in.Tenants = slices.Clone(p.in.Tenants)
			p.serve(t, in)
			l.gw.Run("conntrack -F 2>/dev/null")
			flow := p.dial(t, "udp", p.bluePod)
			if got, err := nettest.Ask(flow); got != p.blue {
				t.Fatalf("%s: before, the server saw %q, %v", c.name, got, err)
			}
			if !c.owners {
				l.without(t, owners, p.iptables)
				l.gw.Run("nft flush map inet egw-guard translate4; nft flush map inet egw-guard translate6") // as a repair would
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
			for _, b := range out.Packets()[before:] {
				if w := read(b); w.src.String() == p.blue && w.dport == 7 {
					wrong++
				}
			}
			if leaks := !c.deletes && !c.owners; (wrong > 0) != leaks {
				t.Errorf("%s: %d packets of the former holder left with the address; leak expected: %v", c.name, wrong, leaks)
			}
		}
	})
}
