// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"slices"

	"egress-gateway.io/test/lab/namespace"
)

// The IPv6 plane of a lab with Options.DualStack: beside each IPv4 address of
// topology.go an IPv6 one that looks like it. The control network has none.
const (
	GatewayInternal6 = "fd00:99::12"
	GatewayExternal6 = "2001:db8:55::12"
	LANHost6         = "fd00:99::50"
	Server6          = "2001:db8:55::13"
	ServerFar6       = "2001:db8:113::10"

	InternalNetwork6 = "fd00:99::/64"
	ExternalNetwork6 = "2001:db8:55::/64"
	PodNetworks6     = "fd01::/48"
)

// ServerURL6 is ServerURL over IPv6.
const ServerURL6 = "http://[" + Server6 + "]:8080/"

const bits6 = 64 // of every IPv6 network but PodNetworks6

// nodeAddress6 is fd00:99::21 for the first node (index 0).
func nodeAddress6(index int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:99::%d", 21+index))
}

// nodeSubnet6 is fd01:0:0:1::/64 for the first node.
func nodeSubnet6(index int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("fd01:0:0:%x::/64", index+1))
}

// podNetworks is what CLUSTER_POD_NETWORKS says.
func (l *Lab) podNetworks() string {
	if l.opts.DualStack {
		return PodNetworks + "," + PodNetworks6
	}
	return PodNetworks
}

// dual returns list with the IPv6 items added, if the lab has IPv6.
func (l *Lab) dual(list []string, v6 ...string) []string {
	if l.opts.DualStack {
		return append(list, v6...)
	}
	return list
}

// noWait are settings under which the link-local addresses of links that come
// later work at once, as those of a machine that has been up for a while do.
var noWait = [][2]string{
	{"ipv6/conf/all/accept_dad", "0"},
	{"ipv6/conf/default/accept_dad", "0"},
}

// addBridge6 gives the bridge of a switch an IPv6 address. Its ports keep
// without.
func (l *Lab) addBridge6(part Part, address string) error {
	settings := slices.Concat(noWait, [][2]string{{"ipv6/conf/" + bridge + "/disable_ipv6", "0"}})
	if err := namespace.Sysctl(l.Namespace(part), settings...); err != nil {
		return err
	}
	h, err := l.netlink(part)
	if err != nil {
		return err
	}
	return configure(h, bridge, address)
}

// addGateway6 gives a gateway VM's NICs their IPv6 addresses. Its settings
// stay as a cloud hands them out.
func (l *Lab) addGateway6(vm gatewayVM) error {
	h, err := l.netlink(vm.part)
	if err != nil {
		return err
	}
	for nic, address := range map[string]string{"enp1s0": vm.internal6, "enp7s0": vm.external6} {
		if err := configure(h, nic, cidr(address, bits6)); err != nil {
			return err
		}
	}
	return l.addRoute(vm.part, "::/0", Server6, "enp7s0")
}

// addNode6 gives a node's links their IPv6 addresses and its default route.
func (l *Lab) addNode6(n *Node) error {
	part := Part(n.Name)
	settings := [][2]string{
		{"ipv6/conf/all/forwarding", "1"},
		// OVN does not follow redirects, nor does it configure itself.
		{"ipv6/conf/" + nodeNIC + "/accept_redirects", "0"},
		{"ipv6/conf/" + nodeNIC + "/accept_ra", "0"},
		// A machine that gets an address tells its neighbours; the kernel does
		// not for addresses that configure adds.
		{"ipv6/conf/" + nodeNIC + "/ndisc_notify", "1"},
	}
	if err := namespace.Sysctl(l.Namespace(part), settings...); err != nil {
		return err
	}
	h, err := l.netlink(part)
	if err != nil {
		return err
	}
	address := cidr(n.Address6.String(), bits6)
	if err := l.readdress(part, nodeNIC, address, address); err != nil {
		return err
	}
	if err := configure(h, podsBr, cidr(podRouter(n.Subnet6).String(), n.Subnet6.Bits())); err != nil {
		return err
	}
	if l.opts.NodeDefaultViaGateway {
		return l.addRoute(part, "::/0", GatewayInternal6, nodeNIC)
	}
	return l.addRoute(part, "::/0", "", "")
}
