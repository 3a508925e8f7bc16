// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// trafficTo sends from pods of node1 until the returned function is called: new
// UDP flows, and one long UDP and TCP flow each.
func (l *lab) trafficTo(server string, pods ...string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, pod := range pods {
		for _, network := range []string{"udp", "tcp"} {
			long, err := l.node1.Dial(network, pod, server)
			wg.Go(func() {
				for ctx.Err() == nil {
					if err == nil { // one that is refused in silence takes no more at some time
						_ = long.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
						_, _ = long.Write([]byte("."))
					}
					if c, err := l.node1.Dial("udp", pod, server); err == nil {
						_, _ = c.Write([]byte("."))
						c.Close()
					}
					time.Sleep(time.Millisecond)
				}
				if err == nil {
					long.Close()
				}
			})
		}
	}
	return func() { cancel(); wg.Wait() }
}

// TestLockedInFlows: hole (a). Connections that left untranslated before the
// gateway was programmed must not go on to. Those that nobody has answered are
// new to connection tracking for as long as they last, and get a mark as new ones
// do where they began before there was any address translation.
func TestLockedInFlows(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		l.gw.Run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
		for _, subnet := range p.in.Nodes[0].Subnets {
			if tenant.FamilyOf(subnet.Addr()) == p.family {
				l.gw.Run(p.ip() + " route add " + subnet.String() + " via " + p.node1 + " proto 97")
			}
		}
		p.stale(p.blueGateway)
		unanswered := func() {
			for range 5 {
				l.node1.Raw(p.bluePod).UDP(5000, netip.MustParseAddrPort(at(p.silent, 53)))
			}
		}
		l.gw.Run(p.iptables + " -A FORWARD -m conntrack --ctstate NEW") // connection tracking starts with the first rule that needs it
		if unanswered(); !soon(func() bool { return p.leaked() == 5 }) {
			t.Fatalf("without the gateway %d packets of 5 left", p.leaked())
		}
		l.gw.Run(p.iptables + " -t nat -A POSTROUTING -o lo -j MASQUERADE")
		udp, tcp := p.dial(t, "udp", p.bluePod), p.dial(t, "tcp", p.bluePod)
		for _, c := range []net.Conn{udp, tcp} {
			if got, err := nettest.Ask(c); got != p.bluePod {
				t.Fatalf("without the gateway the pod's own address should be seen: %q, %v", got, err)
			}
		}
		p.serve(t, p.in)
		before := p.leaked()
		for range 5 {
			_, _ = nettest.Ask(udp)
			_, _ = nettest.Ask(tcp)
		}
		unanswered()
		if n := p.leaked() - before; n != 0 {
			t.Errorf("%d packets of connections that were locked in left with the pod's address", n)
		}

		// The node learns the right MAC, and either guard does without the other;
		// what is left of the old connections goes.
		l.node1.Run("ip neigh del " + p.blueGateway + " dev eth0")
		for _, gone := range []string{"nft delete table inet egw-guard", p.iptables + " -F EGW-FWD"} {
			l.gw.Run(gone)
			if unanswered(); p.leaked() != before {
				t.Errorf("after %q %d packets of a connection that nobody answers left with the pod's address", gone, p.leaked()-before)
			}
			p.serve(t, p.in)
		}
		var n int
		var err error
		l.gw.Do(func() { n, err = l.flows.DeleteUntranslated(context.Background(), p.in.Nodes[0].Subnets) })
		if err != nil || n < 2 {
			t.Errorf("deleted %d untranslated connections, %v", n, err)
		}
		_, _ = nettest.Ask(udp) // takes the pending error of a refused packet
		if got, err := nettest.Ask(udp); got != p.blue {
			t.Errorf("the same UDP socket: %q, %v", got, err)
		}
		translated := func() int { return p.sources()[netip.MustParseAddr(p.blue)] }
		had := translated()
		if unanswered(); !soon(func() bool { return translated()-had == 5 }) {
			t.Errorf("%d packets of 5 of the connection that nobody answers leave with the tenant's address now", translated()-had)
		}
		p.expect(t, p.bluePod, p.blue)
		if n := p.leaked() - before; n != 0 {
			t.Errorf("%d packets leaked", n)
		}
	})
}

// TestStaleNeighbour: refused, not leaked, and well again at once.
func TestStaleNeighbour(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		old := p.dial(t, "udp", p.bluePod)
		if got, err := nettest.Ask(old); got != p.blue {
			t.Fatal(got, err)
		}
		p.stale(p.blueGateway)
		if got, err := nettest.Ask(old); got != p.blue {
			t.Errorf("a translated flow should go on while the entry is stale: %q, %v", got, err)
		}
		fresh := p.dial(t, "udp", p.bluePod)
		start := time.Now()
		if got, err := nettest.Ask(fresh); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a new flow should be refused while the entry is stale: %q, %v", got, err)
		}
		if _, err := l.node1.Dial("tcp", p.bluePod, at(p.server, 7)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a new TCP connection: %v", err)
		}
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("refusing took %s", d)
		}
		l.node1.Run("ip neigh del " + p.blueGateway + " dev eth0")
		if got, err := nettest.Ask(fresh); got != p.blue {
			t.Errorf("the same UDP socket after convergence: %q, %v", got, err)
		}
		p.expect(t, p.bluePod, p.blue)
		p.clean(t)
	})
}

// TestHoles: (b) to (e), with traffic all the while.
func TestHoles(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		third, vm, mgmt := "203.0.113.99", "172.30.0.12", nettest.New(t)
		l.gw.Wire("mgmt0", mgmt, "eth0")
		if p.family == tenant.IPv6 {
			third, vm = "2001:db8:99::99", "fd00:172::12"
			l.gw.Run("ip address add fd00:172::12/64 dev mgmt0 nodad; ip route add " + third + "/128 via fd00:172::1")
			mgmt.Run("ip address add fd00:172::1/64 dev eth0 nodad; ip address add " + third + "/128 dev lo nodad; ip route add default via " + vm)
		} else {
			l.gw.Run("ip address add 172.30.0.12/24 dev mgmt0; ip route add " + third + "/32 via 172.30.0.1")
			mgmt.Run("ip address add 172.30.0.1/24 dev eth0; ip address add " + third + "/32 dev lo; ip route add default via " + vm)
		}
		other := mgmt.Capture("eth0")
		mgmt.Echo(at(third, 7))

		p.serve(t, p.in)
		server := at(p.server, 7)
		stop := l.trafficTo(server, p.bluePod, p.redPod)
		defer stop()
		nat, links, translate := p.iptables+" -t nat ", "nft flush map inet egw-guard "+p.set("links")+"; ", "nft flush map inet egw-guard "+p.set("translate")+"; "
		for name, damage := range map[string]string{
			"(b) marked, no SNAT":             translate + nat + "-F EGW-S00",
			"(b) marked, no SNAT but by maps": nat + "-F EGW-S00",
			"(b) marked, no SNAT by maps":     translate + links,
			"(b) the whole nat table":         nat + "-F",
			"(b) somebody else's masquerade":  translate + nat + "-F; " + nat + "-A POSTROUTING -o enp7s0 -j MASQUERADE",
			"(c) no rules, link up":           links + nat + "-F",
			"(e) everything flushed":          p.iptables + " -F; " + nat + "-F; " + links + translate,
			"wrong mark":                      links + nat + "-F EGW-M00; " + nat + "-A EGW-M00 -i eg001 -j MARK --set-xmark 0x200000/0xfff00000",
			"forward guard gone, mark absent": links + p.iptables + " -F EGW-OUT; " + nat + "-F EGW-MARK",
		} {
			l.gw.Run(damage)
			time.Sleep(50 * time.Millisecond)
			if got := l.node1.Seen("udp", p.bluePod, server); got == p.own {
				t.Errorf("%s: the tenant left with the VM's own address", name)
			}
			l.gw.Try(nat + "-D POSTROUTING -o enp7s0 -j MASQUERADE")
			l.serve(p.in)
			if n := p.leaked(); n != 0 {
				t.Fatalf("%s: %d packets leaked", name, n)
			}
		}
		if got := l.node1.Seen("udp", p.bluePod, at(third, 7)); got == p.bluePod {
			t.Error("(d) a pod reached the other NIC with its own address")
		}
		for src := range other.Sources() {
			if tenant.FamilyOf(src) == p.family && src != netip.MustParseAddr(vm) && !src.IsLinkLocalUnicast() && !src.IsUnspecified() {
				t.Errorf("(d) source %s on the other NIC", src)
			}
		}
		stop()
		p.expect(t, p.bluePod, p.blue)
		p.clean(t)

		// The exit guard is needed: without it, a missing SNAT rule leaks.
		l.gw.Run("nft delete table inet egw-guard; " + nat + "-F EGW-S00")
		if !soon(func() bool { _ = l.node1.Seen("udp", p.bluePod, server); return p.leaked() > 0 }) {
			t.Error("nothing leaked without the exit guard: this test shows nothing")
		}
	})
}

// TestHandOver swaps two tenants' addresses again and again under traffic:
// afterwards each long flow has its tenant's new address, at once.
func TestHandOver(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		in := p.in
		in.Tenants = slices.Clone(p.in.Tenants)
		p.serve(t, in)
		stop := l.trafficTo(at(p.server, 7), p.bluePod, p.redPod)
		defer stop()
		b, r := p.dial(t, "udp", p.bluePod), p.dial(t, "udp", p.redPod)
		egress := func(n int) string { a, _ := p.family.First(in.Tenants[n].EgressIPs); return a.String() }
		for i := range 10 {
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
			l.serve(in)
			for c, want := range map[net.Conn]string{b: egress(0), r: egress(1)} {
				if got, err := nettest.Ask(c); got != want {
					t.Errorf("swap %d: a flow that was there before: the server saw %q (%v), want %s", i, got, err, want)
				}
			}
		}
		// A tenant goes, its address goes to another.
		next := map[tenant.Family]string{tenant.IPv4: "192.168.99.15", tenant.IPv6: "fd00:99::15"}[p.family]
		in.Tenants = []plan.Numbered{in.Tenants[0], numbered(3, "ns-new", next, egress(1))}
		l.serve(in)
		if got, err := nettest.Ask(r); err == nil {
			t.Errorf("a removed tenant's flow still got an answer: %s", got)
		}
		stop()
		p.clean(t)
	})
}

// TestFromOutside: nothing behind the gateway, and nothing of it, is reached.
func TestFromOutside(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.echo(l.gw)
		p.echo(l.node1)
		l.node2.Echo(at(p.node2, 7))
		spoofed := map[tenant.Family]string{tenant.IPv4: "10.129.0.5/32", tenant.IPv6: "fd01:0:0:9::5/128"}[p.family]
		l.ext.Run(p.ip() + " address add " + spoofed + " dev lo")
		p.serve(t, p.in)
		inside, sources := p.record(l.node1, "eth0"), []string{p.outside, netip.MustParsePrefix(spoofed).Addr().String()}
		for _, to := range []string{p.bluePod, p.node1, p.blueGateway, p.blue} {
			var wg sync.WaitGroup
			for _, from := range sources {
				c, err := l.ext.Dial("udp", from, at(to, 7))
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					defer c.Close()
					if got, err := nettest.Ask(c); err == nil || !strings.Contains(err.Error(), "timeout") {
						t.Errorf("UDP from %s to %s: %s, %v", from, to, got, err)
					}
				})
			}
			if got := l.ext.Seen("tcp", p.outside, at(to, 7)); !strings.Contains(got, "timeout") {
				t.Errorf("TCP to %s: %s", to, got)
			}
			wg.Wait()
		}
		for _, b := range inside.Packets() {
			if w := read(b); slices.Contains(sources, w.src.String()) {
				t.Errorf("a packet of %s arrived inside, for %s", w.src, w.dst)
			}
		}
		l.ext.Ping(p.outside, p.blue)
		l.node1.Ping(p.bluePod, p.blueGateway)
		for _, to := range []string{p.blue, p.red, p.blueGateway, p.own} {
			if got := l.node1.Seen("tcp", p.bluePod, at(to, 7)); !strings.Contains(got, "timeout") {
				t.Errorf("a pod reached a service of the VM at %s: %s", to, got)
			}
		}
		// Hairpin: the node network, through the gateway, with its own address.
		expectAt(t, l.node1, p.bluePod, at(p.node2, 7), p.vm)
		p.clean(t)
	})
}

func expectAt(t *testing.T, n *nettest.Net, pod, at, want string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got := n.Seen(network, pod, at); got != want {
			t.Errorf("%s from %s to %s: seen as %q, want %s", network, pod, at, got, want)
		}
	}
}

// TestNodeAddressSource: OVN sends pods with the node's address after a restart
// of ovnkube-controller, through the tenant's link.
func TestNodeAddressSource(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.serve(l.input())
		l.node1.Run("ip route add 203.0.113.10/32 via 192.168.99.13")
		expect(t, l.node1, "192.168.99.21", blue)
		l.node1.Run("ip route replace 203.0.113.10/32 via 192.168.99.12")
		if got := l.node1.Seen("udp", "192.168.99.21", server); !strings.Contains(got, "timeout") {
			t.Errorf("a node's own traffic left: %s", got)
		}
		l.clean(blue, red)
	})
}

// TestUnknownNode: a pod network that no record tells of yet, and a node whose
// route is missing.
func TestUnknownNode(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		in := p.in
		in.Nodes, in.Networks = in.Nodes[1:], nil
		p.serve(t, in)
		for _, network := range []string{"udp", "tcp"} {
			got := l.node1.Seen(network, p.bluePod, at(p.server, 7))
			if got == p.bluePod || got == p.own {
				t.Errorf("%s: %s", network, got)
			}
		}
		in.Networks = p.in.Networks
		l.serve(in)
		p.stale(p.blueGateway)
		_ = l.node1.Seen("tcp", p.bluePod, at(p.server, 7))
		_ = l.node1.Seen("udp", p.bluePod, at(p.server, 7))
		p.clean(t)
	})
}

// TestPodMovesToAnotherTenant: a connection that began as blue's must not go on
// with blue's address when its pod sends through red's gateway IP.
func TestPodMovesToAnotherTenant(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		c := p.dial(t, "udp", p.bluePod)
		if got, err := nettest.Ask(c); got != p.blue {
			t.Fatal(got, err)
		}
		table := map[tenant.Family]string{tenant.IPv4: "110", tenant.IPv6: "100"}[p.family]
		l.node1.Run(p.ip() + " route replace default via " + p.redGateway + " table " + table)
		if got, err := nettest.Ask(c); err == nil {
			t.Errorf("the server saw %s", got)
		}
		p.expect(t, p.bluePod, p.red)
	})
}
