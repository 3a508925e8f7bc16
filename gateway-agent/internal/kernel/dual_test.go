// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net/netip"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

const (
	server6 = "[2001:db8::10]:7"
	blue6   = "fd00:55::113"
)

// dual adds IPv6 to the lab, and returns the input that serves blue in both
// families and red in IPv4 only.
func (l *lab) dual(backend string) plan.Input {
	l.t.Helper()
	l.gw.Run(`ip address add fd00:99::12/64 dev enp1s0 nodad
		ip address add fd00:55::12/64 dev enp7s0 nodad
		ip route add default via fd00:55::13`)
	l.ext.Run(`ip address add fd00:55::13/64 dev eth0 nodad
		ip address add 2001:db8::10/128 dev lo nodad
		ip route add fd01::/48 via fd00:55::12
		ip route add fd00:99::/64 via fd00:55::12`)
	l.node1.Run(`ip address add fd00:99::21/64 dev eth0 nodad
		ip address add fd01::10/128 dev lo nodad
		ip -6 rule add from fd01::10 lookup 100
		ip -6 route add default via fd00:99::13 table 100`)
	l.ext.Echo(server6)
	l.open(backend)

	in := l.input()
	if !in.Host.IPv6 || len(in.Host.OnLink) != 2 {
		l.t.Fatalf("host: %+v", in.Host)
	}
	in.Tenants[0].GatewayIPs = addrs("192.168.99.13", "fd00:99::13")
	in.Tenants[0].EgressIPs = addrs(blue, blue6)
	in.Nodes[0].Addresses = addrs("192.168.99.21", "fd00:99::21")
	in.Nodes[0].Subnets = append(in.Nodes[0].Subnets, netip.MustParsePrefix("fd01::/64"))
	in.Networks[0].PodNetworks = append(in.Networks[0].PodNetworks, netip.MustParsePrefix("fd01::/48"))
	return in
}

// served brings the kernel to in, and waits until nodes can ask for blue's IPv6
// gateway IP: the kernel joins the group for that a moment after the address is
// there.
func (l *lab) served(t *testing.T, in plan.Input) {
	t.Helper()
	l.serve(in)
	nettest.Wait(t, "the tenant's link to hear neighbour solicitations", func() bool {
		return strings.Contains(l.gw.Run("ip -6 maddress show dev eg001"), "ff02::1:ff00:13")
	})
}

// onWire6 fails the test if a packet left with an IPv6 source that is neither
// blue's egress IP, nor the VM's own, nor link-local.
func (l *lab) onWire6(t *testing.T) {
	t.Helper()
	for src, n := range l.wire.Sources() {
		if src.Is6() && !src.IsLinkLocalUnicast() && !src.IsUnspecified() && src.String() != blue6 && src.String() != "fd00:55::12" {
			t.Errorf("%d packets left with source %s", n, src)
		}
	}
}

// TestDualStack serves blue in both families and red in IPv4 only.
func TestDualStack(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		in := l.dual(strings.Split(t.Name(), "/")[1])
		l.served(t, in)
		expect(t, l.node1, "10.128.0.10", blue)
		expectAt(t, l.node1, "fd01::10", server6, blue6)

		// The VM's own connections never use a tenant's address, although blue's
		// is more like this destination than the VM's own.
		const near = "[fd00:55::112]:7"
		l.ext.Run("ip address add fd00:55::112/64 dev eth0 nodad")
		l.ext.Echo(near)
		nettest.Wait(t, "the outside to hear neighbour solicitations", func() bool {
			return strings.Contains(l.ext.Run("ip -6 maddress show dev eth0"), "ff02::1:ff00:112")
		})
		expectAt(t, l.gw, "::", near, "fd00:55::12")

		// Without the SNAT rule nothing leaves; without the tenant's IPv6 neither.
		l.gw.Run("ip6" + strings.Split(t.Name(), "/")[1][2:] + " -t nat -F; nft flush map inet egw-guard translate6")
		if got := l.node1.Seen("udp", "fd01::10", server6); !strings.Contains(got, "timeout") {
			t.Errorf("without SNAT: %s", got)
		}
		l.serve(in)
		expectAt(t, l.node1, "fd01::10", server6, blue6)
		four := l.input()
		four.Networks[0].PodNetworks = in.Networks[0].PodNetworks
		l.serve(four)
		if got := l.node1.Seen("tcp", "fd01::10", server6); got == blue6 || got == "fd01::10" {
			t.Errorf("without IPv6 of the tenant: %s", got)
		}
		l.reach(plan.State{})
		l.onWire6(t)
	})
}

// TestLeaksIPv6: the guards hold for IPv6 what they hold for IPv4.
func TestLeaksIPv6(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		backend := strings.Split(t.Name(), "/")[1]
		in := l.dual(backend)
		l.served(t, in)
		expectAt(t, l.node1, "fd01::10", server6, blue6)
		closed := func(what, network, source string) {
			t.Helper()
			if got := l.node1.Seen(network, source, server6); !strings.Contains(got, "timeout") && !strings.Contains(got, "refused") {
				t.Errorf("%s: %s is seen as %s", what, source, got)
			}
		}
		// Past the tenant's link, as with a stale neighbour entry.
		l.node1.Run("ip -6 route replace default via fd00:99::12 table 100")
		closed("past the link", "tcp", "fd01::10")
		closed("past the link", "udp", "fd01::10")
		// A node's own address: through the link it is the tenant's, else nobody's.
		l.node1.Run("ip -6 route add 2001:db8::10/128 via fd00:99::12")
		closed("a node itself", "udp", "fd00:99::21")
		l.node1.Run("ip -6 route replace 2001:db8::10/128 via fd00:99::13")
		expectAt(t, l.node1, "fd00:99::21", server6, blue6)

		// Somebody flushes tables: the exit guard is left.
		l.node1.Run("ip -6 route replace default via fd00:99::13 table 100")
		flush := "ip6" + backend[2:] + " -t "
		for _, damage := range []string{flush + "nat -F; nft flush map inet egw-guard translate6", flush + "filter -F", "nft flush map inet egw-guard links6"} {
			l.gw.Run(damage)
			closed("after "+damage, "udp", "fd01::10")
			closed("after "+damage, "tcp", "fd01::10")
		}
		// A pod network that nobody told of, through the link.
		l.serve(in)
		l.node1.Run("ip address add fd02::10/128 dev lo nodad; ip -6 rule add from fd02::10 lookup 100")
		if got := l.node1.Seen("udp", "fd02::10", server6); got != blue6 && !strings.Contains(got, "timeout") {
			t.Errorf("an unknown pod network: %s", got)
		}
		l.onWire6(t)
	})
}
