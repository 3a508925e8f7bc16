// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"regexp"
)

// The address plan. It is the same in every lab: labs differ in the names of
// their namespaces only, and never meet.
const (
	GatewayInternal = "192.168.99.12" // enp1s0
	GatewayExternal = "192.168.55.12" // enp7s0
	GatewayControl  = "172.30.0.12"   // mgmt0
	LANHost         = "192.168.99.50" // a host of the node network that is no node
	Server          = "192.168.55.13" // the outside server
	ServerFar       = "203.0.113.10"  // another address of it, behind a router
	Control         = "172.30.0.1"

	InternalNetwork = "192.168.64.0/18"
	ExternalNetwork = "192.168.0.0/18"
	ControlNetwork  = "172.30.0.0/24"
	PodNetworks     = "10.128.0.0/14"

	HTTPPort = 8080
	EchoPort = 7

	apiPort  = 6443
	natsPort = 4222
	etcdPort = 2379
)

// ServerURL is the page of the outside server that answers with the address of
// the client.
const ServerURL = "http://" + Server + ":8080/"

// Part names a namespace of the lab.
type Part string

// The parts of a lab. A node's part is its name, a pod's Pod.Part.
const (
	PartGateway  Part = "gw"  // the gateway VM
	PartGateway2 Part = "gw2" // with Options.SecondGateway: another one
	PartInternal Part = "int" // the internal switch, and LANHost on it
	PartExternal Part = "ext" // the external switch, and the outside server on it
	PartControl  Part = "ctl" // etcd, API server, NATS, cluster-agents
)

// A dash separates the lab's name from the part's, so a name holds none.
var labName = regexp.MustCompile(`^[a-z][a-z0-9]{0,19}$`)

// Namespace returns the name of a part's network namespace, as `ip netns`
// shows it.
func (l *Lab) Namespace(part Part) string { return namespaceOf(l.opts.Name, part) }

func namespaceOf(lab string, part Part) string { return lab + "-" + string(part) }

var (
	internalBits = netip.MustParsePrefix(InternalNetwork).Bits()
	externalBits = netip.MustParsePrefix(ExternalNetwork).Bits()
	controlBits  = netip.MustParsePrefix(ControlNetwork).Bits()
)

// nodeAddress is 192.168.99.21 for the first node (index 0).
func nodeAddress(index int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, 99, byte(21 + index)})
}

// nodeSubnet is 10.128.0.0/23 for the first node, 10.128.2.0/23 for the second.
func nodeSubnet(index int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128, byte(2 * index), 0}), 23)
}

// maxNodes keeps node addresses clear of LANHost (.50).
const maxNodes = 29

// podRouter is the first address of a node's subnet: the node's own leg in it.
func podRouter(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// firstPod is the tenth address of a subnet.
func firstPod(subnet netip.Prefix) netip.Addr {
	a := subnet.Masked().Addr()
	for range 10 {
		a = a.Next()
	}
	return a
}

// mac returns a fixed, locally administered address for a VM's NIC, so that a
// recreated VM has the NICs it had before.
func mac(addr string) string {
	b := netip.MustParseAddr(addr).As4()
	return fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}
