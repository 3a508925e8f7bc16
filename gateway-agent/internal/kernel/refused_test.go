// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestRefusedByTenant has pods of two tenants send what is refused, for each
// reason, over both families, and compares with what was refused in all. What
// is right is not counted.
func TestRefusedByTenant(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		backend := strings.Split(t.Name(), "/")[1]
		mgmt := nettest.New(t)
		l.gw.Wire("mgmt0", mgmt, "eth0")
		l.gw.Run("ip address add 172.30.0.12/24 dev mgmt0; ip route add 203.0.113.99/32 via 172.30.0.1")
		in := l.dual(backend)
		l.served(t, in)
		expect(t, l.node1, bluePod, blue)
		expectAt(t, l.node1, "fd01::10", server6, blue6)
		if c := l.counters(); len(c.RefusedOf) != 0 {
			t.Fatalf("refused before anything: %v", c.RefusedOf)
		}
		const blueID, redID = "demo/ns-blue", "demo/ns-red"
		counts := func(id string, why plan.Reason, n uint64) {
			t.Helper()
			var c kernel.Counters
			if !soon(func() bool { c = l.counters(); return c.RefusedOf[id][why.String()] >= n }) || c.RefusedOf[id][why.String()] != n {
				t.Errorf("%s of %s: %v, want %d", why, id, c.RefusedOf, n)
			}
		}
		reset := nettest.TCP(netip.MustParseAddrPort(bluePod+":1234"), netip.MustParseAddrPort(server), 4, 1, 0)
		for range 3 {
			l.node1.Raw(bluePod).Send(netip.MustParseAddr("203.0.113.10"), unix.IPPROTO_TCP, reset)
		}
		reset = nettest.TCP(netip.MustParseAddrPort("10.128.0.11:1234"), netip.MustParseAddrPort(server), 4, 1, 0)
		l.node1.Raw("10.128.0.11").Send(netip.MustParseAddr("203.0.113.10"), unix.IPPROTO_TCP, reset)
		counts(blueID, plan.RefusedInvalid, 3)
		counts(redID, plan.RefusedInvalid, 1)

		// Past both NICs; a connection that left untranslated before; the same
		// over IPv6; a source that no pod network holds.
		_ = l.node1.Seen("udp", bluePod, "203.0.113.99:7")
		counts(blueID, plan.RefusedUntranslated, 1)
		l.gw.Run("conntrack -I -p udp -t 300 -s 10.128.0.11 -d 203.0.113.10 --sport 5000 --dport 7")
		l.node1.Raw("10.128.0.11").UDP(5000, netip.MustParseAddrPort(server))
		counts(redID, plan.RefusedUntranslated, 1)
		l.gw.Run("conntrack -I -p udp -t 300 -s fd01::10 -d 2001:db8::10 --sport 5000 --dport 7")
		l.node1.Raw("fd01::10").UDP(5000, netip.MustParseAddrPort(server6))
		counts(blueID, plan.RefusedUntranslated, 2)
		l.pod(l.node1, "172.31.0.5", "192.168.99.14")
		_ = l.node1.Seen("udp", "172.31.0.5", "203.0.113.99:7")
		counts(redID, plan.RefusedUnknown, 1)

		// What the VM itself is asked for, at the gateway IP.
		_ = l.node1.Seen("udp", bluePod, "192.168.99.13:7")
		counts(blueID, plan.RefusedInput, 1)

		// The same, and what comes from outside, at another tenant's egress IP; from
		// outside also at a gateway IP, and over IPv6. Pings are answered.
		_ = l.node1.Seen("udp", "10.128.0.11", blue+":7")
		counts(redID, plan.RefusedInput, 1)
		counts(blueID, plan.RefusedInput, 1)
		outside, outside6 := l.ext.Raw("192.168.55.13"), l.ext.Raw("fd00:55::13")
		outside.UDP(5000, netip.MustParseAddrPort(blue+":9"))
		outside.UDP(5000, netip.MustParseAddrPort("192.168.99.14:9"))
		outside6.UDP(5000, netip.MustParseAddrPort("["+blue6+"]:9"))
		outside6.UDP(5000, netip.MustParseAddrPort("[fd00:99::13]:9"))
		l.ext.Ping("192.168.55.13", blue)
		counts(blueID, plan.RefusedOutside, 3)
		counts(redID, plan.RefusedOutside, 1)

		// All of it is in the sums too, and nothing else of these reasons.
		c := l.counters()
		for _, why := range []plan.Reason{plan.RefusedInvalid, plan.RefusedUntranslated, plan.RefusedUnknown} {
			if sum := c.RefusedOf[blueID][why.String()] + c.RefusedOf[redID][why.String()]; sum != c.Refused[why.String()].Packets {
				t.Errorf("%s: %d of tenants, %d in all", why, sum, c.Refused[why.String()].Packets)
			}
		}

		// The exit guard, by link, and by mark past the link.
		l.gw.Run(backend + " -t nat -F EGW-S00; nft flush map inet egw-guard translate4")
		_ = l.node1.Seen("udp", bluePod, server)
		counts(blueID, plan.RefusedExit, 1)
		l.serve(in)
		long := l.dial(t, l.node1, "udp", "10.128.0.11")
		if got, err := nettest.Ask(long); got != red {
			t.Fatal(got, err)
		}
		l.stale(l.node1, "192.168.99.14")
		l.gw.Run("nft flush set inet egw-guard owners4; nft flush set inet egw-guard stale4")
		_, _ = nettest.Ask(long)
		counts(redID, plan.RefusedExit, 1)
		guards := uint64(0)
		for what, n := range l.counters().Guards {
			if strings.HasPrefix(what, "source not") || strings.HasPrefix(what, "pod source") {
				guards += n.Packets
			}
		}
		if guards != 2 {
			t.Errorf("the exit guard dropped %d packets, 2 of tenants: %v", guards, l.counters().Guards)
		}
		l.clean(blue, red)
	})
}

// TestOutsideIsCountedForWhoHasTheAddress: an address that changes hands brings no
// count with it.
func TestOutsideIsCountedForWhoHasTheAddress(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		in := l.input()
		l.serve(in)
		l.ext.Raw("192.168.55.13").UDP(5000, netip.MustParseAddrPort(blue+":9"))
		want := func(ofBlue, ofRed uint64) {
			t.Helper()
			got := func() [2]uint64 {
				c := l.counters().RefusedOf
				return [2]uint64{c["demo/ns-blue"]["from_outside"], c["demo/ns-red"]["from_outside"]}
			}
			if !soon(func() bool { return got() == [2]uint64{ofBlue, ofRed} }) {
				t.Errorf("counted %v, want %d and %d", got(), ofBlue, ofRed)
			}
		}
		want(1, 0)
		in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
		l.serve(in)
		want(1, 0)
		l.ext.Raw("192.168.55.13").UDP(5000, netip.MustParseAddrPort(blue+":9"))
		want(1, 1)
	})
}

// TestCountsEndWithTheirTenant: who gets the number of a tenant that went finds
// no count of that, whether it comes at once or later; the others keep theirs.
func TestCountsEndWithTheirTenant(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		in := l.input()
		l.serve(in)
		const redID = "demo/ns-red"
		refuse := func() {
			t.Helper()
			for i, pod := range []string{"10.128.0.10", "10.128.0.11"} {
				_ = l.node1.Seen("udp", pod, fmt.Sprintf("192.168.99.%d:7", 13+i))
				l.node1.Run(fmt.Sprintf("ip route replace 203.0.113.10/32 via 192.168.99.%d", 13+i))
				expect(t, l.node1, "192.168.99.21", []string{blue, red}[i])
			}
		}
		refuse()
		c := l.counters()
		if c.NodeSources["demo/ns-blue"] != 2 || c.RefusedOf["demo/ns-blue"]["input_guard"] != 1 || c.NodeSources[redID] != 2 || c.RefusedOf[redID]["input_guard"] != 1 {
			t.Fatalf("counted %v, %v", c.NodeSources, c.RefusedOf)
		}
		astray := func() int {
			var list []plan.Stray
			l.gw.Do(func() { list, _ = l.kernel.Strays(context.Background()) })
			n := 0
			for _, s := range list {
				if s.Number == 1 {
					n++
				}
			}
			return n
		}
		long := l.dial(t, l.node1, "udp", bluePod)
		_, _ = nettest.Ask(long)
		l.stale(l.node1, "192.168.99.13")
		if got, err := nettest.Ask(long); got != blue || astray() != 1 {
			t.Fatalf("a packet past the link: seen as %s, %v; %d astray", got, err, astray())
		}
		l.node1.Run("ip neigh del 192.168.99.13 dev eth0")
		next := func(name string) {
			t.Helper()
			if n := astray(); n != 0 {
				t.Errorf("%s begins with %d astray", name, n)
			}
			c := l.counters()
			id := "demo/" + name
			if c.NodeSources[id] != 0 || len(c.RefusedOf[id]) != 0 || c.Tenants[id].FromPods.Packets > 2 {
				t.Errorf("%s begins with %d, %v, %+v", name, c.NodeSources[id], c.RefusedOf[id], c.Tenants[id])
			}
			if c.NodeSources[redID] == 0 || c.RefusedOf[redID]["input_guard"] == 0 {
				t.Errorf("red has lost its counts: %v, %v", c.NodeSources, c.RefusedOf)
			}
		}
		// At once, in one pass.
		in.Tenants[0] = numbered(1, "ns-green", "192.168.99.13", "192.168.55.115")
		l.serve(in)
		next("ns-green")
		l.node1.Run("ip neigh flush all")
		_ = l.node1.Seen("udp", bluePod, "192.168.99.13:7")
		if c := l.counters(); c.RefusedOf["demo/ns-green"]["input_guard"] != 1 {
			t.Errorf("green is not counted: %v", c.RefusedOf)
		}
		// Later, with another agent in between.
		in.Tenants = in.Tenants[1:]
		l.serve(in)
		l.open(strings.Split(t.Name(), "/")[1])
		in.Tenants = append(in.Tenants, numbered(1, "ns-late", "192.168.99.15", "192.168.55.116"))
		l.serve(in)
		next("ns-late")
		// The link went, and the agent with it before it could do more.
		_ = l.node1.Seen("udp", "192.168.99.21", "192.168.99.15:7")
		if c := l.counters(); c.RefusedOf["demo/ns-late"]["input_guard"] != 1 {
			t.Fatalf("late is not counted: %v", c.RefusedOf)
		}
		l.gw.Run("ip link delete eg001")
		in.Tenants = in.Tenants[:1]
		l.serve(in)
		in.Tenants = append(in.Tenants, numbered(1, "ns-last", "192.168.99.16", "192.168.55.117"))
		l.serve(in)
		next("ns-last")
	})
}
