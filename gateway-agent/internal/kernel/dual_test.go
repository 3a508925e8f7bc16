// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net/netip"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
)

const (
	server6 = "[2001:db8::10]:7"
	blue6   = "fd00:55::113"
)

// TestDualStack serves blue in both families and red in IPv4 only.
func TestDualStack(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.gw.Run(`ip address add fd00:99::12/64 dev enp1s0 nodad
			ip address add fd00:55::12/64 dev enp7s0 nodad
			ip route add default via fd00:55::13`)
		l.ext.Run(`ip address add fd00:55::13/64 dev eth0 nodad
			ip address add 2001:db8::10/128 dev lo nodad
			ip route add fd01::/48 via fd00:55::12`)
		l.node1.Run(`ip address add fd00:99::21/64 dev eth0 nodad
			ip address add fd01::10/128 dev lo nodad
			ip -6 rule add from fd01::10 lookup 100
			ip -6 route add default via fd00:99::13 table 100`)
		l.ext.Echo(server6)
		l.open(strings.Split(t.Name(), "/")[1])

		in := l.input()
		if !in.Host.IPv6 || len(in.Host.OnLink) != 2 {
			t.Fatalf("host: %+v", in.Host)
		}
		in.Tenants[0].GatewayIPs = addrs("192.168.99.13", "fd00:99::13")
		in.Tenants[0].EgressIPs = addrs(blue, blue6)
		in.Nodes[0].Addresses = addrs("192.168.99.21", "fd00:99::21")
		in.Nodes[0].Subnets = append(in.Nodes[0].Subnets, netip.MustParsePrefix("fd01::/64"))
		in.Networks[0].PodNetworks = append(in.Networks[0].PodNetworks, netip.MustParsePrefix("fd01::/48"))
		l.serve(in)
		// The kernel joins the group in which nodes ask for an address a moment
		// after the address is there.
		wait(t, "the tenant's link to hear neighbour solicitations", func() bool {
			return strings.Contains(l.gw.Run("ip -6 maddress show dev eg001"), "ff02::1:ff00:13")
		})
		expect(t, l.node1, "10.128.0.10", blue)
		expectAt(t, l.node1, "fd01::10", server6, blue6)

		// The VM's own connections never use a tenant's address, although blue's
		// is more like this destination than the VM's own.
		const near = "[fd00:55::112]:7"
		l.ext.Run("ip address add fd00:55::112/64 dev eth0 nodad")
		l.ext.Echo(near)
		expectAt(t, l.gw, "::", near, "fd00:55::12")

		// Without the SNAT rule nothing leaves; without the tenant's IPv6 neither.
		l.gw.Run("ip6" + strings.Split(t.Name(), "/")[1][2:] + " -t nat -F")
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
		for src, n := range l.wire.Sources() {
			if netip.MustParsePrefix("fd01::/48").Contains(src) {
				t.Errorf("%d packets left with source %s", n, src)
			}
		}
	})
}
