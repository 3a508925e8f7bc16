// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"egress-gateway.io/shared/tenant"
	"egress-gateway.io/test/lab/namespace"
)

// The two NICs of a gateway, named as on the VMs of the demo.
const (
	internalNIC = "enp1s0"
	externalNIC = "enp7s0"
)

// gateway is one of the gateways that stand side by side. Each has ranges of
// its own, so that all of them share the two switches:
//
//	172.16.0.<id>          internal address     172.20.0.<id>  external address
//	172.<16+id>.16.1...    gateway IPs          172.<20+id>.16.1...  egress IPs
//	10.<id>.0.0/16         what lies behind it: the node routes these through it
type gateway struct {
	name     string
	ns       string
	id       byte
	family   tenant.Family   // of the addresses that it tells
	families []tenant.Family // of its tenants, each of which has all
}

// in is g with its addresses in family f.
func (g gateway) in(f tenant.Family) gateway { g.family = f; return g }

const (
	pods        = "10.128.0.0/16"
	podNetwork  = "10.128.0.0/14"
	nodeAddress = "172.16.0.100"
	farAddress  = "172.20.0.100" // the host outside; all destinations are its own
)

// MaxTenants is how many tenants a gateway is built for.
const MaxTenants = 4000

func (g gateway) of(a, b, c, d byte) netip.Addr {
	return inFamily(g.family, netip.AddrFrom4([4]byte{a, b, c, d}))
}

func (g gateway) internal() netip.Addr { return g.of(172, 16, 0, g.id) }
func (g gateway) external() netip.Addr { return g.of(172, 20, 0, g.id) }

// gatewayIP and egressIP are those of tenant i, from 0.
func (g gateway) gatewayIP(i int) netip.Addr {
	return g.of(172, 16+g.id, 16+byte(i>>8), byte(i))
}

func (g gateway) egressIP(i int) netip.Addr {
	return g.of(172, 20+g.id, 16+byte(i>>8), byte(i))
}

// destination is address i, from 0 to 65535, behind the gateway.
func (g gateway) destination(i int) netip.Addr {
	return g.of(10, g.id, byte(i>>8), byte(i))
}

// pod is pod i of the node, the same for all gateways.
func (g gateway) pod(i int) netip.Addr { return g.of(10, 128, byte(i>>8), byte(i)) }

// topology is the node, the host outside, and the gateways between two
// switches. Nobody asks for addresses: neighbours are told, so that nothing but
// the packets of the measurement is on the way.
type topology struct {
	prefix   string
	tenants  int
	family   tenant.Family // of what is measured, and of the addresses that MACs are made from
	families []tenant.Family
	node     string
	far      string
	sw       string
	gateways []gateway
}

// build makes a topology for tenants that have all of families.
func build(ctx context.Context, prefix string, families []tenant.Family, tenants int) (*topology, error) {
	t := &topology{prefix: prefix, tenants: tenants, family: families[0], families: families, node: prefix + "-node", far: prefix + "-far", sw: prefix + "-sw"}
	for i, name := range []string{Ours, Linear, plain} {
		t.gateways = append(t.gateways, gateway{name: name, ns: prefix + "-" + name, id: byte(i + 1), family: families[0], families: families})
	}
	if err := t.make(ctx); err != nil {
		return nil, errors.Join(err, t.remove())
	}
	return t, nil
}

// gateway returns the one that has these rules.
func (t *topology) gateway(name string) gateway {
	if name == Unguarded {
		name = Ours
	}
	for _, g := range t.gateways {
		if g.name == name {
			return g
		}
	}
	return gateway{}
}

func (t *topology) namespaces() []string {
	out := []string{t.sw, t.node, t.far}
	for _, g := range t.gateways {
		out = append(out, g.ns)
	}
	return out
}

func (t *topology) remove() error {
	var errs []error
	for _, ns := range t.namespaces() {
		errs = append(errs, namespace.Delete(ns))
	}
	return errors.Join(errs...)
}

func (t *topology) make(ctx context.Context) error {
	for _, ns := range t.namespaces() {
		if err := namespace.Create(ns); err != nil {
			return err
		}
		if err := namespace.Sysctl(ns, sysctls(t.families)...); err != nil {
			return err
		}
	}
	if err := t.switches(ctx); err != nil {
		return err
	}
	if err := t.ends(ctx); err != nil {
		return err
	}
	for _, g := range t.gateways {
		if err := t.prepare(ctx, g); err != nil {
			return err
		}
	}
	return nil
}

// switches makes two bridges that learn nothing and flood nothing they need
// not: a frame to a tenant's MAC has to go to one port only, also before that
// MAC was ever a sender.
func (t *topology) switches(ctx context.Context) error {
	if err := t.ip(ctx, t.sw, t.family, "link add int type bridge\nlink set int up\nlink add ext type bridge\nlink set ext up\n"); err != nil {
		return err
	}
	for file, value := range map[string]string{"bridge/bridge-nf-call-iptables": "0", "bridge/bridge-nf-call-ip6tables": "0", "bridge/bridge-nf-call-arptables": "0"} {
		// Where bridges hand packets to iptables, the switches would filter too.
		err := namespace.Sysctl(t.sw, [2]string{file, value})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := t.plug(t.node, "eth0", "int", "node", netip.MustParseAddr(nodeAddress)); err != nil {
		return err
	}
	if err := t.plug(t.far, "eth0", "ext", "far", netip.MustParseAddr(farAddress)); err != nil {
		return err
	}
	for _, g := range t.gateways {
		if err := t.plug(g.ns, internalNIC, "int", "int-"+g.name, netip.AddrFrom4([4]byte{172, 16, 0, g.id})); err != nil {
			return err
		}
		if err := t.plug(g.ns, externalNIC, "ext", "ext-"+g.name, netip.AddrFrom4([4]byte{172, 20, 0, g.id})); err != nil {
			return err
		}
		var fdb strings.Builder
		for i := range t.tenants {
			fmt.Fprintf(&fdb, "fdb add %s dev int-%s master static\n", mac(g.gatewayIP(i)), g.name)
		}
		if err := run(ctx, t.sw, fdb.String(), "bridge", "-batch", "-"); err != nil {
			return err
		}
	}
	return nil
}

// plug connects a NIC to a bridge, and gives it an address in the bridge's /14,
// and the IPv6 address of it where tenants have one: the agent wants IPv4 too.
func (t *topology) plug(ns, nic, bridge, port string, a netip.Addr) error {
	h, err := namespace.Netlink(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	sw, err := namespace.Netlink(t.sw)
	if err != nil {
		return err
	}
	defer sw.Close()
	peer, err := netns.GetFromName(t.sw)
	if err != nil {
		return err
	}
	defer peer.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = nic, mac(inFamily(t.family, a))
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: port, PeerNamespace: netlink.NsFd(peer)}); err != nil {
		return fmt.Errorf("plug %s of %s: %w", nic, ns, err)
	}
	end, err := sw.LinkByName(port)
	if err != nil {
		return err
	}
	master, err := sw.LinkByName(bridge)
	if err != nil {
		return err
	}
	own, err := h.LinkByName(nic)
	if err != nil {
		return err
	}
	errs := []error{sw.LinkSetMaster(end, master), sw.LinkSetUp(end)}
	for _, f := range slices.Compact(append([]tenant.Family{tenant.IPv4}, t.families...)) {
		a := inFamily(f, a)
		errs = append(errs, h.AddrAdd(own, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen()-18, a.BitLen())}}))
	}
	return errors.Join(append(errs, h.LinkSetUp(own))...)
}

// ends prepares the node and the host outside.
func (t *topology) ends(ctx context.Context) error {
	for _, f := range t.families {
		if err := t.endsIn(ctx, f); err != nil {
			return err
		}
	}
	// Without it 30,000 closed connections would wait for their last segments.
	few := [2]string{"ipv4/tcp_max_tw_buckets", "256"}
	if slices.Contains(t.families, tenant.IPv6) {
		// For IPv4 the route is enough to send with a pod's address.
		if err := namespace.Sysctl(t.node, [2]string{"ipv6/ip_nonlocal_bind", "1"}); err != nil {
			return err
		}
	}
	return errors.Join(namespace.Sysctl(t.node, few), namespace.Sysctl(t.far, few))
}

// endsIn does it for a family: all pods are the node's own addresses, and what
// lies behind gateway g goes to its tenants' gateway IPs.
func (t *topology) endsIn(ctx context.Context, family tenant.Family) error {
	var node, far strings.Builder
	fmt.Fprintf(&node, "route add local %s dev lo\n", prefixIn(family, pods))
	for _, g := range t.gateways {
		g = g.in(family)
		fmt.Fprintf(&far, "route add local %s dev lo\n", prefixIn(family, fmt.Sprintf("10.%d.0.0/16", g.id)))
		fmt.Fprintf(&far, "neigh add %s lladdr %s dev eth0 nud permanent\n", g.external(), t.mac(g.external()))
		fmt.Fprintf(&node, "neigh add %s lladdr %s dev eth0 nud permanent\n", g.internal(), t.mac(g.internal()))
		back := fmt.Sprintf("172.%d.0.0/16", 20+g.id)
		if g.name == plain {
			back = podNetwork
		}
		fmt.Fprintf(&far, "route add %s via %s\n", prefixIn(family, back), g.external())
		for i := range t.tenants {
			fmt.Fprintf(&node, "neigh add %s lladdr %s dev eth0 nud permanent\n", g.gatewayIP(i), t.mac(g.gatewayIP(i)))
		}
		for f := range flows {
			fmt.Fprintf(&node, "route add %s via %s\n", g.destination(f), g.gatewayIP(f%t.tenants))
		}
	}
	return errors.Join(t.ip(ctx, t.node, family, node.String()), t.ip(ctx, t.far, family, far.String()))
}

// mac is the MAC of the NIC or link that has an address: where it has others as
// well, that is made from the first family's.
func (t *topology) mac(a netip.Addr) net.HardwareAddr { return mac(inFamily(t.family, four(a))) }

// prepare gives a gateway its routes and neighbours; tenants come later.
func (t *topology) prepare(ctx context.Context, g gateway) error {
	// As gateway-agent sets it. Without any rp_filter the kernel looks for each
	// source in its table of local addresses, whose 256 lists grow with the tenants.
	loose := [2]string{"ipv4/conf/all/rp_filter", "2"}
	if err := namespace.Sysctl(g.ns, [2]string{"ipv4/ip_forward", "1"}, [2]string{"ipv4/conf/all/send_redirects", "0"}, loose); err != nil {
		return err
	}
	if err := run(ctx, g.ns, "", "ip", "route", "replace", "default", "via", farAddress, "dev", externalNIC); err != nil {
		return err
	}
	for _, f := range t.families {
		if f == tenant.IPv6 {
			if err := namespace.Sysctl(g.ns, [2]string{"ipv6/conf/all/forwarding", "1"}); err != nil {
				return err
			}
		}
		node, far := addressIn(f, nodeAddress), addressIn(f, farAddress)
		lines := fmt.Sprintf("route replace default via %s dev %s\n", far, externalNIC) +
			fmt.Sprintf("neigh add %s lladdr %s dev %s nud permanent\n", node, t.mac(node), internalNIC) +
			fmt.Sprintf("neigh add %s lladdr %s dev %s nud permanent\n", far, t.mac(far), externalNIC)
		if g.name != Ours {
			lines += fmt.Sprintf("route add %s via %s dev %s\n", prefixIn(f, pods), node, internalNIC)
		}
		if err := t.ip(ctx, g.ns, f, lines); err != nil {
			return err
		}
	}
	return nil
}

// linksAndAddresses makes what gateway-agent makes, but for the rules.
func (t *topology) linksAndAddresses(ctx context.Context, g gateway) error {
	if err := namespace.Sysctl(g.ns, [2]string{"ipv4/conf/all/arp_ignore", "1"}, [2]string{"ipv4/conf/all/arp_announce", "2"}); err != nil {
		return err
	}
	var b strings.Builder
	for i := range t.tenants {
		fmt.Fprintf(&b, "link add %s link %s address %s type macvlan mode private\n", link(i), internalNIC, mac(g.gatewayIP(i)))
		fmt.Fprintf(&b, "link set %s addrgenmode none up\naddr add %s dev %s\naddr add %s dev %s\n", link(i), host(g.gatewayIP(i)), link(i), host(g.egressIP(i)), externalNIC)
	}
	return t.ip(ctx, g.ns, t.family, b.String())
}

// linearRules are the first design's: one rule to mark and one to translate
// for each tenant, one after the other.
func (t *topology) linearRules(ctx context.Context, g gateway, backend string) error {
	var mangle, nat strings.Builder
	for i := range t.tenants {
		fmt.Fprintf(&mangle, "-A PREROUTING -i %s -j MARK --set-mark %d\n", link(i), i+1)
		fmt.Fprintf(&nat, "-A POSTROUTING -o %s -m mark --mark %d -j SNAT --to-source %s\n", externalNIC, i+1, g.egressIP(i))
	}
	rules := "*mangle\n" + mangle.String() + "COMMIT\n*nat\n" + nat.String() + "COMMIT\n"
	return run(ctx, g.ns, rules, iptables(t.family, cmp.Or(backend, "nft"))+"-restore")
}

func link(i int) string { return fmt.Sprintf("eg%03x", i+1) }

// ip runs lines of `ip` about a family in a namespace.
func (t *topology) ip(ctx context.Context, ns string, f tenant.Family, lines string) error {
	return run(ctx, ns, lines, "ip", fmt.Sprintf("-%d", f), "-batch", "-")
}

func run(ctx context.Context, ns, stdin string, argv ...string) error {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns}, argv...)...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v in %s: %w: %.500s", argv, ns, err, out)
	}
	return nil
}
