// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

const blueID, redID = "demo/ns-blue", "demo/ns-red"

// TestRefusedByTenant has pods of two tenants send what is refused, for each
// reason, and compares with what was refused in all. What is right is not counted.
func TestRefusedByTenant(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		third, route, stranger := "203.0.113.99", "ip address add 172.30.0.12/24 dev mgmt0; ip route add 203.0.113.99/32 via 172.30.0.1", "172.31.0.5"
		if p.family == tenant.IPv6 {
			third, route, stranger = "2001:db8:99::99", "ip address add fd00:172::12/64 dev mgmt0 nodad; ip route add 2001:db8:99::99/128 via fd00:172::1", "fd02::5"
		}
		l.gw.Wire("mgmt0", nettest.New(t), "eth0")
		l.gw.Run(route)
		p.serve(t, p.in)
		p.expect(t, p.bluePod, p.blue)
		if c := l.counters(); len(c.RefusedOf) != 0 {
			t.Fatalf("refused before anything: %v", c.RefusedOf)
		}
		counts := func(id string, why plan.Reason, n uint64) {
			t.Helper()
			var c kernel.Counters
			if !soon(func() bool { c = l.counters(); return c.RefusedOf[id][why.String()] >= n }) || c.RefusedOf[id][why.String()] != n {
				t.Errorf("%s of %s: %v, want %d", why, id, c.RefusedOf, n)
			}
		}
		to := netip.MustParseAddrPort(at(p.server, 7))
		reset := func(pod string) {
			l.node1.Raw(pod).Send(to.Addr(), unix.IPPROTO_TCP, nettest.TCP(netip.MustParseAddrPort(at(pod, 1234)), to, 4, 1, 0))
		}
		send := func(pod, to string) { l.node1.Raw(pod).UDP(5001, netip.MustParseAddrPort(to)) }
		for range 3 {
			reset(p.bluePod)
		}
		reset(p.redPod)
		counts(blueID, plan.RefusedInvalid, 3)
		counts(redID, plan.RefusedInvalid, 1)

		// Past both NICs; a connection that left untranslated before; a source that
		// no pod network holds.
		send(p.bluePod, at(third, 7))
		counts(blueID, plan.RefusedUntranslated, 1)
		l.gw.Run("conntrack -I -p udp -t 300 -s " + p.redPod + " -d " + p.server + " --sport 5000 --dport 7")
		l.node1.Raw(p.redPod).UDP(5000, to)
		counts(redID, plan.RefusedUntranslated, 1)
		l.pod(l.node1, stranger, p.redGateway)
		send(stranger, at(third, 7))
		counts(redID, plan.RefusedUnknown, 1)

		// What the VM itself is asked for, at the gateway IP.
		send(p.bluePod, at(p.blueGateway, 7))
		counts(blueID, plan.RefusedInput, 1)

		// The same, and what comes from outside, at another tenant's egress IP; from
		// outside also at a gateway IP. Pings are answered.
		send(p.redPod, at(p.blue, 7))
		counts(redID, plan.RefusedInput, 1)
		counts(blueID, plan.RefusedInput, 1)
		outside := l.ext.Raw(p.outside)
		outside.UDP(5000, netip.MustParseAddrPort(at(p.blue, 9)))
		outside.UDP(5000, netip.MustParseAddrPort(at(p.blueGateway, 9)))
		outside.UDP(5000, netip.MustParseAddrPort(at(p.redGateway, 9)))
		l.ext.Ping(p.outside, p.blue)
		counts(blueID, plan.RefusedOutside, 2)
		counts(redID, plan.RefusedOutside, 1)

		// All of it is in the sums too, and nothing else of these reasons.
		c := l.counters()
		for _, why := range []plan.Reason{plan.RefusedInvalid, plan.RefusedUntranslated, plan.RefusedUnknown} {
			if sum := c.RefusedOf[blueID][why.String()] + c.RefusedOf[redID][why.String()]; sum != c.Refused[why.String()].Packets {
				t.Errorf("%s: %d of tenants, %d in all", why, sum, c.Refused[why.String()].Packets)
			}
		}

		// The exit guard, by link, and by mark past the link.
		l.gw.Run(p.iptables + " -t nat -F EGW-S00; nft flush map inet egw-guard " + p.set("translate"))
		send(p.bluePod, to.String())
		counts(blueID, plan.RefusedExit, 1)
		l.serve(p.in)
		long := p.dial(t, "udp", p.redPod)
		if got, err := nettest.Ask(long); got != p.red {
			t.Fatal(got, err)
		}
		p.stale(p.redGateway)
		l.gw.Run("nft flush set inet egw-guard " + p.set("owners") + "; nft flush set inet egw-guard " + p.set("stale"))
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
		p.clean(t)
	})
}

// TestOutsideIsCountedForWhoHasTheAddress: an address that changes hands brings no
// count with it.
func TestOutsideIsCountedForWhoHasTheAddress(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		in := p.in
		p.serve(t, in)
		outside, to := l.ext.Raw(p.outside), netip.MustParseAddrPort(at(p.blue, 9))
		outside.UDP(5000, to)
		want := func(ofBlue, ofRed uint64) {
			t.Helper()
			got := func() [2]uint64 {
				c := l.counters().RefusedOf
				return [2]uint64{c[blueID]["from_outside"], c[redID]["from_outside"]}
			}
			if !soon(func() bool { return got() == [2]uint64{ofBlue, ofRed} }) {
				t.Errorf("counted %v, want %d and %d", got(), ofBlue, ofRed)
			}
		}
		want(1, 0)
		in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
		l.serve(in)
		want(1, 0)
		outside.UDP(5000, to)
		want(1, 1)
	})
}

// TestCountsEndWithTheirTenant: who gets the number of a tenant that went finds
// no count of that, whether it comes at once or later; the others keep theirs.
func TestCountsEndWithTheirTenant(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		in := p.in
		p.serve(t, in)
		for i, pod := range []string{p.bluePod, p.redPod} {
			gateway := []string{p.blueGateway, p.redGateway}[i]
			_ = l.node1.Seen("udp", pod, at(gateway, 7))
			l.node1.Run(p.ip() + " route replace " + p.server + " via " + gateway)
			p.expect(t, p.node1, []string{p.blue, p.red}[i])
		}
		c := l.counters()
		if c.NodeSources[blueID] != 2 || c.RefusedOf[blueID]["input_guard"] != 1 || c.NodeSources[redID] != 2 || c.RefusedOf[redID]["input_guard"] != 1 {
			t.Fatalf("counted %v, %v", c.NodeSources, c.RefusedOf)
		}
		astray := func() (n int) {
			for _, s := range l.counters().Strays {
				if s.Number == 1 {
					n++
				}
			}
			return n
		}
		long := p.dial(t, "udp", p.bluePod)
		_, _ = nettest.Ask(long)
		p.stale(p.blueGateway)
		if got, err := nettest.Ask(long); got != p.blue || astray() != 1 {
			t.Fatalf("a packet past the link: seen as %s, %v; %d astray", got, err, astray())
		}
		l.node1.Run("ip neigh del " + p.blueGateway + " dev eth0")
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
		gateways, egress := strings.TrimSuffix(p.blueGateway, "13"), strings.TrimSuffix(p.blue, "113")
		// At once, in one pass.
		in.Tenants[0] = numbered(1, "ns-green", p.blueGateway, egress+"115")
		p.serve(t, in)
		next("ns-green")
		l.node1.Run("ip neigh flush all")
		_ = l.node1.Seen("udp", p.bluePod, at(p.blueGateway, 7))
		if c := l.counters(); c.RefusedOf["demo/ns-green"]["input_guard"] != 1 {
			t.Errorf("green is not counted: %v", c.RefusedOf)
		}
		// Later, with another agent in between.
		in.Tenants = in.Tenants[1:]
		l.serve(in)
		l.open(strings.Split(t.Name(), "/")[1])
		in.Tenants = append(in.Tenants, numbered(1, "ns-late", gateways+"15", egress+"116"))
		p.serve(t, in)
		next("ns-late")
		// The link went, and the agent with it before it could do more.
		_ = l.node1.Seen("udp", p.node1, at(gateways+"15", 7))
		if c := l.counters(); c.RefusedOf["demo/ns-late"]["input_guard"] != 1 {
			t.Fatalf("late is not counted: %v", c.RefusedOf)
		}
		l.gw.Run("ip link delete eg001")
		in.Tenants = in.Tenants[:1]
		l.serve(in)
		in.Tenants = append(in.Tenants, numbered(1, "ns-last", gateways+"16", egress+"117"))
		l.serve(in)
		next("ns-last")
	})
}
