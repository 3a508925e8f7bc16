// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab/namespace"
)

const unreachable = unix.RTN_UNREACHABLE

// gatewayVM is a gateway VM's place in the address plan. Its port on each
// switch has the name of its part.
type gatewayVM struct {
	part                                              Part
	internal, external, control, internal6, external6 string
}

func firstGateway() gatewayVM {
	return gatewayVM{PartGateway, GatewayInternal, GatewayExternal, GatewayControl, GatewayInternal6, GatewayExternal6}
}

func secondGateway() gatewayVM {
	return gatewayVM{PartGateway2, "192.168.99.11", "192.168.55.11", "172.30.0.11", "fd00:99::11", "2001:db8:55::11"}
}

func (l *Lab) makeGateways() error {
	if err := l.makeGateway(firstGateway()); err != nil || !l.opts.SecondGateway {
		return err
	}
	return l.makeGateway(secondGateway())
}

// makeGateway builds a gateway VM as a cloud hands it out: nothing that the
// data path needs is set, and what hurts it is (strict reverse path filter on
// each new link, ARP answered and announced by any NIC, no forwarding).
func (l *Lab) makeGateway(vm gatewayVM) error {
	if err := l.makePart(vm.part); err != nil {
		return err
	}
	err := namespace.Sysctl(l.Namespace(vm.part),
		[2]string{"ipv4/ip_forward", "0"},
		[2]string{"ipv4/conf/all/arp_ignore", "0"},
		[2]string{"ipv4/conf/all/arp_announce", "0"},
		[2]string{"ipv4/conf/default/arp_ignore", "0"},
		[2]string{"ipv4/conf/default/arp_announce", "0"},
		[2]string{"ipv4/conf/all/rp_filter", "0"},
		[2]string{"ipv4/conf/default/rp_filter", "1"},
		[2]string{"ipv4/conf/all/send_redirects", "1"},
		[2]string{"ipv4/conf/default/send_redirects", "1"},
		[2]string{"ipv4/conf/all/accept_redirects", "1"},
		[2]string{"ipv6/conf/all/forwarding", "0"},
	)
	if err != nil {
		return err
	}
	port := string(vm.part)
	cables := []cable{
		{part: vm.part, nic: "enp1s0", mac: mac(vm.internal), addrs: []string{cidr(vm.internal, internalBits)}, switchPart: PartInternal, bridge: bridge, port: port},
		{part: vm.part, nic: "enp7s0", mac: mac(vm.external), addrs: []string{cidr(vm.external, externalBits)}, switchPart: PartExternal, bridge: bridge, port: port},
		{part: vm.part, nic: "mgmt0", mac: mac(vm.control), addrs: []string{cidr(vm.control, controlBits)}, switchPart: PartControl, bridge: bridge, port: port},
	}
	for _, c := range cables {
		if err := l.plug(c); err != nil {
			return err
		}
	}
	if l.opts.DualStack {
		if err := l.addGateway6(vm); err != nil {
			return err
		}
	}
	return l.addRoute(vm.part, "default", Server, "enp7s0")
}

// ResetGateway is a power cut of the first gateway VM: its processes die, its links,
// rules and connections are gone, and it comes back with the same NICs and an
// empty kernel. Files, the agent's state directory among them, stay. The agent
// is not started again.
func (l *Lab) ResetGateway() error {
	for _, p := range l.processesIn(PartGateway) {
		if err := p.Kill(); err != nil {
			return err
		}
	}
	for _, sw := range []Part{PartInternal, PartExternal, PartControl} {
		if err := l.unplug(sw, string(PartGateway)); err != nil {
			return err
		}
	}
	if err := l.dropPart(PartGateway); err != nil {
		return err
	}
	return l.makeGateway(firstGateway())
}

// RunInGateway runs a command on the gateway VM and returns its output.
func (l *Lab) RunInGateway(argv ...string) (string, error) { return l.Exec(PartGateway, argv...) }

// LinkMAC returns the hardware address of a link in a part.
func (l *Lab) LinkMAC(part Part, link string) (net.HardwareAddr, error) {
	h, err := l.netlink(part)
	if err != nil {
		return nil, err
	}
	found, err := h.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("find link %s of %s: %w", link, part, err)
	}
	return found.Attrs().HardwareAddr, nil
}

// PoisonNeighbour makes a node believe that ip is at mac, until HealNeighbour:
// a stale neighbour entry that does not age, and that no announcement corrects.
func (l *Lab) PoisonNeighbour(node string, ip netip.Addr, mac net.HardwareAddr) error {
	h, link, err := l.nodeNIC(node)
	if err != nil {
		return err
	}
	n := &netlink.Neigh{LinkIndex: link, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
	if err := h.NeighSet(n); err != nil {
		return fmt.Errorf("set neighbour %s of %s: %w", ip, node, err)
	}
	return nil
}

// HealNeighbour makes a node forget what it believes of ip, so that it asks
// anew with the next packet. No entry is no error.
func (l *Lab) HealNeighbour(node string, ip netip.Addr) error {
	h, link, err := l.nodeNIC(node)
	if err != nil {
		return err
	}
	err = h.NeighDel(&netlink.Neigh{LinkIndex: link, IP: ip.AsSlice()})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete neighbour %s of %s: %w", ip, node, err)
	}
	return nil
}

func (l *Lab) nodeNIC(node string) (*netlink.Handle, int, error) {
	h, err := l.netlink(Part(node))
	if err != nil {
		return nil, 0, err
	}
	link, err := h.LinkByName(nodeNIC)
	if err != nil {
		return nil, 0, fmt.Errorf("find %s of %s: %w", nodeNIC, node, err)
	}
	return h, link.Attrs().Index, nil
}

func cidr(addr string, bits int) string { return fmt.Sprintf("%s/%d", addr, bits) }
