// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// advertisement is a frame with a router advertisement of fe80::1, which offers
// itself as default router and a prefix to make addresses from.
func advertisement(to, from net.HardwareAddr, prefix netip.Prefix) []byte {
	router, all := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::1")
	body := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // lives for 1800 s
	body = append(append(body, 1, 1), from...)
	body = append(body, 3, 4, byte(prefix.Bits()), 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0)
	body = append(body, prefix.Addr().AsSlice()...)

	sum := uint32(len(body)) + 58
	for _, part := range [][]byte{router.AsSlice(), all.AsSlice(), body} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(body[2:], ^uint16(sum))

	f := append(append(append([]byte{}, to...), from...), 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), 58, 255)
	return append(append(append(f, router.AsSlice()...), all.AsSlice()...), body...)
}

// TestRouterAdvertisements: a VM that has its way out from router
// advertisements keeps it although it forwards now; tenants' links take
// nothing from them, and no default route comes from the inside.
func TestRouterAdvertisements(t *testing.T) {
	l := newLab(t, "iptables-nft")
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	allNodes := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	outside, inside := netip.MustParsePrefix("2001:db8:77::/64"), netip.MustParsePrefix("fd00:77::/64")
	gw := func(args, want string) func() bool {
		return func() bool { out, err := l.gw.Try("ip -6 " + args); return err == nil && strings.Contains(out, want) }
	}
	l.gw.Run("ip address add fd00:99::12/64 dev enp1s0 nodad")
	fromOutside := l.ext.Sender("eth0")
	fromOutside(advertisement(allNodes, mac, outside))
	nettest.Wait(t, "the VM to take its default route from the advertisement", gw("route show default", "dev enp7s0 proto ra"))

	l.open("iptables-nft")
	in := l.input()
	in.Tenants[0].GatewayIPs, in.Tenants[0].EgressIPs = addrs("192.168.99.13", "fd00:99::13"), addrs("192.168.55.113", "2001:db8:77::113")
	l.serve(in)
	if out := l.gw.Run("ip -6 route show default"); !strings.Contains(out, "dev enp7s0 proto ra") {
		t.Errorf("the VM has lost its IPv6 default route; it has %q", out)
	}

	fromInside := l.node1.Sender("eth0")
	tenantMAC, err := net.ParseMAC(plan.MAC(netip.MustParseAddr("192.168.99.13")))
	if err != nil {
		t.Fatal(err)
	}
	fromInside(advertisement(tenantMAC, mac, inside))
	fromInside(advertisement(allNodes, mac, inside))
	nettest.Wait(t, "the internal NIC to take an address from the advertisement", gw("address show dev enp1s0", "fd00:77:"))
	if out := l.gw.Run("ip -6 route show default"); strings.Contains(out, "enp1s0") || strings.Contains(out, "eg001") {
		t.Errorf("a default route from the inside: %s", out)
	}
	if out := l.gw.Run("ip -6 -o address show dev eg001"); strings.Count(out, "inet6") != 1 || !strings.Contains(out, "fd00:99::13/128") {
		t.Errorf("the tenant's link has more than its gateway IP: %s", out)
	}
	for key, wrong := range map[string]string{"accept_ra": "2", "autoconf": "1", "addr_gen_mode": "0"} {
		l.gw.Sysctl("net/ipv6/conf/eg001/"+key, wrong)
		l.serve(in) // as any other thing that somebody changed by hand
		if got := l.gw.Run("cat /proc/sys/net/ipv6/conf/eg001/" + key); strings.TrimSpace(got) == wrong {
			t.Errorf("%s of a tenant's link stays %s", key, wrong)
		}
	}
	fromOutside(advertisement(allNodes, mac, netip.MustParsePrefix("2001:db8:78::/64")))
	nettest.Wait(t, "the external NIC to go on to take advertisements", gw("address show dev enp7s0", "2001:db8:78:"))
}

// TestPreflightIPv6: the IPv6 default route counts while a tenant has IPv6, and
// what is wrong with it keeps no gateway from serving IPv4.
func TestPreflightIPv6(t *testing.T) {
	l := newLab(t, "iptables-nft")
	check := func(want string) {
		t.Helper()
		var got []string
		l.gw.Do(func() {
			for _, c := range l.kernel.Preflight(context.Background()) {
				got = append(got, fmt.Sprintf("%s partial=%v", c.Name, c.Partial))
				t.Log(c)
			}
		})
		if fmt.Sprint(got) != want {
			t.Errorf("failed checks: %v, want %s", got, want)
		}
	}
	l.gw.Run("ip address add fd00:99::12/64 dev enp1s0 nodad; ip address add fd00:55::12/64 dev enp7s0 nodad")
	check("[]")
	l.open("iptables-nft")
	in := l.input()
	l.serve(in)
	check("[]")
	in.Tenants[0].GatewayIPs, in.Tenants[0].EgressIPs = addrs("fd00:99::13"), addrs("fd00:55::113")
	l.serve(in)
	check("[default route IPv6 partial=true]")
	l.gw.Run("ip -6 route add default via fd00:99::21")
	check("[default route IPv6 partial=true]")
	l.gw.Run("ip -6 route replace default via fd00:55::13")
	check("[]")
}
