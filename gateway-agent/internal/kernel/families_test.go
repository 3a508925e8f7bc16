// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// plane is the lab as one family has it: the same parts, by their addresses.
type plane struct {
	l        *lab
	family   tenant.Family
	iptables string // of the family and the backend
	in       plan.Input

	bluePod, redPod         string // on node1
	blueGateway, redGateway string
	blue, red, second       string // egress IPs; second is free
	own                     string // the VM's, outside
	vm, node1, node2        string // on the nodes' network
	outside                 string // the outside host's, on the wire
	server, silent          string // an outside host that answers at port 7, and one that does not answer
	icmp                    byte
	pods                    netip.Prefix
}

// at adds a port.
func at(ip string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port).String()
}

// eachFamily runs a test over both families, with each backend. Blue and red
// have a pod each on node1, and are not served yet.
func eachFamily(t *testing.T, test func(t *testing.T, l *lab, p plane)) {
	for _, backend := range backends(t) {
		for _, f := range tenant.Families() {
			t.Run(backend+"/"+f.String(), func(t *testing.T) {
				t.Parallel()
				l := newLab(t, backend)
				l.pods()
				test(t, l, l.plane(backend, f))
			})
		}
	}
}

func (l *lab) plane(backend string, f tenant.Family) plane {
	l.t.Helper()
	if f == tenant.IPv4 {
		return plane{l: l, family: f, iptables: backend, in: l.input(), bluePod: bluePod, redPod: "10.128.0.11",
			blueGateway: "192.168.99.13", redGateway: "192.168.99.14", blue: blue, red: red, second: "192.168.55.115", own: "192.168.55.12",
			vm: "192.168.99.12", node1: "192.168.99.21", node2: "192.168.99.22", outside: "192.168.55.13", server: "203.0.113.10", silent: "203.0.113.11",
			icmp: unix.IPPROTO_ICMP, pods: netip.MustParsePrefix("10.128.0.0/14")}
	}
	p := plane{l: l, family: f, iptables: "ip6" + backend[2:], in: l.dual(backend), bluePod: "fd01::10", redPod: "fd01::11",
		blueGateway: "fd00:99::13", redGateway: "fd00:99::14", blue: blue6, red: "fd00:55::114", second: "fd00:55::115", own: "fd00:55::12",
		vm: "fd00:99::12", node1: "fd00:99::21", node2: "fd00:99::22", outside: "fd00:55::13", server: "2001:db8::10", silent: "2001:db8::11",
		icmp: unix.IPPROTO_ICMPV6, pods: netip.MustParsePrefix("fd01::/48")}
	l.node2.Run("ip address add fd00:99::22/64 dev eth0 nodad")
	l.pod(l.node1, p.redPod, p.redGateway)
	p.in.Tenants[1].GatewayIPs = append(p.in.Tenants[1].GatewayIPs, netip.MustParseAddr(p.redGateway))
	p.in.Tenants[1].EgressIPs = append(p.in.Tenants[1].EgressIPs, netip.MustParseAddr(p.red))
	p.in.Nodes[1].Addresses = addrs("192.168.99.22", p.node2)
	return p
}

// serve is lab.serve, and waits until the gateway hears who asks for the
// addresses: the kernel joins their groups a moment after they are there.
func (p plane) serve(t *testing.T, in plan.Input) {
	t.Helper()
	p.l.serve(in)
	for _, tn := range in.Tenants {
		for dev, list := range map[string][]netip.Addr{plan.LinkName(tn.Number): tn.GatewayIPs, "enp7s0": tn.EgressIPs} {
			for _, a := range tenant.IPv6.Addrs(list) {
				b := a.As16()
				group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
				nettest.Wait(t, dev+" to hear neighbour solicitations", func() bool {
					return strings.Contains(p.l.gw.Run("ip -6 maddress show dev "+dev), group.String())
				})
			}
		}
	}
}

func (p plane) record(n *nettest.Net, nic string) *nettest.Recording {
	if p.family == tenant.IPv6 {
		return n.RecordIPv6(nic)
	}
	return n.Record(nic)
}

// stale points node1's neighbour entry for a gateway IP to the MAC of enp1s0.
func (p plane) stale(gateway string) {
	mac := strings.TrimSpace(p.l.gw.Run("ip -o link show enp1s0 | sed 's/.*ether //; s/ .*//'"))
	p.l.node1.Run("ip neigh replace " + gateway + " lladdr " + mac + " dev eth0 nud permanent")
}

// ip is the command for the family.
func (p plane) ip() string {
	if p.family == tenant.IPv6 {
		return "ip -6"
	}
	return "ip"
}

// echo answers at every address that n has in the family.
func (p plane) echo(n *nettest.Net) {
	any := netip.IPv4Unspecified()
	if p.family == tenant.IPv6 {
		any = netip.IPv6Unspecified()
	}
	n.Echo(at(any.String(), 7))
}

// expect checks that pod is seen as want by the server.
func (p plane) expect(t *testing.T, pod, want string) {
	t.Helper()
	expectAt(t, p.l.node1, pod, at(p.server, 7), want)
}

// dial connects a pod of node1 to the server.
func (p plane) dial(t *testing.T, network, pod string) net.Conn {
	t.Helper()
	return p.l.dialTo(t, network, pod, at(p.server, 7))
}

// withOther returns list with these addresses in place of its family's.
func (p plane) withOther(list []netip.Addr, replaced ...string) []netip.Addr {
	out := slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return tenant.FamilyOf(a) == p.family })
	return append(out, addrs(replaced...)...)
}

// sources are those of the family's packets that left the gateway, without those
// of its own neighbour discovery.
func (p plane) sources() map[netip.Addr]int {
	out := make(map[netip.Addr]int)
	for src, n := range p.l.wire.Sources() {
		if tenant.FamilyOf(src) == p.family && !src.IsLinkLocalUnicast() && !src.IsUnspecified() {
			out[src] = n
		}
	}
	return out
}

// clean checks that nothing left but with the tenants' egress IPs and the VM's
// own address.
func (p plane) clean(t *testing.T, more ...string) {
	t.Helper()
	ok := map[netip.Addr]bool{}
	for _, a := range addrs(append(more, p.own, p.blue, p.red)...) {
		ok[a] = true
	}
	for src, n := range p.sources() {
		if !ok[src] {
			t.Errorf("%d packets left the gateway with source %s", n, src)
		}
	}
}

// leaked returns how many packets left with a pod's source so far.
func (p plane) leaked() int {
	sum := 0
	for src, n := range p.sources() {
		if p.pods.Contains(src) {
			sum += n
		}
	}
	return sum
}

// rule is the name of a rule of the guard for the family.
func (p plane) rule(what string) string { return fmt.Sprintf("%s %s", what, p.family) }

// set names the set or map of the guard that is for p's family.
func (p plane) set(kind string) string { return fmt.Sprintf("%s%d", kind, p.family) }

// lan is an address of the nodes' network that no node has.
func (p plane) lan() string {
	return map[tenant.Family]string{tenant.IPv4: "192.168.99.77", tenant.IPv6: "fd00:99::77"}[p.family]
}
