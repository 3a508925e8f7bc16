// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net/netip"
	"strings"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/shared/tenant"
)

// outsideCases are the guardCases about what comes in by the external NIC, and
// what is recorded outside, at node1, and beyond the third NIC. Each rule of
// EGW-EXT is taken away alone where no other stops the same packets.
func (p plane) outsideCases(outside, node1, third *nettest.Recording, stranger string) []guardCase {
	l := p.l
	raw, src := l.ext.Raw(p.outside), netip.MustParseAddr(p.bluePod)
	spoof := func(to string, hops byte) func() {
		dst := netip.MustParseAddr(to)
		packet := nettest.Hops(nettest.IP(src, dst, p.icmp, nettest.ICMPEcho(src, dst, nil)), hops)
		return func() { raw.SendPacket(netip.MustParseAddr(p.own), packet) }
	}
	answer := func(w onWire) bool { return w.protocol == p.icmp && w.dst == src }
	mac := func(where string) string {
		_, rest, _ := strings.Cut(where, "link/ether ")
		mac, _, _ := strings.Cut(rest, " ")
		return mac
	}
	network := p.in.Nodes[0].Subnets[len(p.in.Nodes[0].Subnets)-1].String() // node1's, of the family
	l.ext.Run(p.ip() + " route add " + p.second + " via " + p.own)
	released := p.ip() + " neigh replace " + p.second + " lladdr " + mac(l.ext.Run("ip -o link show eth0")) + " dev enp7s0"
	elsewhere := p.ip() + " route add " + stranger + " via " + map[tenant.Family]string{tenant.IPv4: "172.30.0.1", tenant.IPv6: "fd00:172::1"}[p.family]
	noExitGuard := "nft flush chain inet egw-guard exit-out"
	return []guardCase{
		{name: "forward guard, from outside to pods",
			outside: []string{"-d "}, provoke: sending(l.ext, p.outside, p.bluePod), at: node1, wrong: sentBy(p.outside)},
		{name: "forward guard, from outside to nodes",
			chains: []string{"filter EGW-NODES"}, provoke: sending(l.ext, p.outside, p.node1), at: node1, wrong: sentBy(p.outside)},
		// Without the rule the packet counts as a pod's that is refused, and the pod is told.
		{name: "forward guard, for a spoofed source towards a host inside that is no node", cause: "nft flush chain inet egw-guard fast-mark",
			outside: []string{"-s "}, provoke: spoof(p.lan(), 64), at: node1, wrong: answer},
		{name: "spoofed sources, for the same while somebody has flushed EGW-EXT", cause: "IPTABLES -F EGW-EXT",
			rules: []string{p.rule("spoofed connection")}, provoke: spoof(p.lan(), 64), at: node1, wrong: answer},
		{name: "forward guard, for an egress IP that was released and is still sent here", cause: released, undo: p.ip() + " neigh del " + p.second + " dev enp7s0",
			outside: []string{"-o "}, provoke: sending(l.ext, p.outside, p.second), at: outside,
			wrong: func(w onWire) bool { return w.dst.String() == p.second }},
		{name: "forward guard, for replies to a node without a route", cause: noExitGuard + "; " + p.ip() + " route del " + network,
			outside: []string{"-o ", "-m connmark", "-d "}, provoke: sending(l.node1, p.bluePod, p.server), at: outside, wrong: sentBy(p.server)},
		{name: "forward guard, for replies whose way back leads to a third NIC", cause: elsewhere, undo: strings.Replace(elsewhere, "add", "del", 1),
			outside: []string{"-m connmark"}, provoke: sending(l.node1, stranger, p.server), at: third, wrong: sentBy(p.server)},
		{name: "input guard, for the VM's answers to a spoofed source",
			rules: []string{p.rule("spoofed pod source"), p.rule("spoofed connection")}, provoke: spoof(p.own, 64), at: node1, wrong: answer},
		{name: "spoofed sources, for what the VM says of packets that went too far",
			rules: []string{p.rule("spoofed connection")}, provoke: spoof(p.server, 1), at: node1, wrong: answer},
	}
}
