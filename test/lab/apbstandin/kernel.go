// SPDX-License-Identifier: Apache-2.0

package apbstandin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab/namespace"
)

const (
	clusterPriority = 1000 // to the cluster network: the node's own routes
	podPriority     = 2000 // from a pod: that pod's table
	routeProtocol   = 98   // marks the stand-in's routes
)

// routes maps a pod's address to its next hops.
type routes map[netip.Addr][]netip.Addr

// nodeKernel is one node's namespace, and what of ours is in it.
type nodeKernel struct {
	id   uint64
	h    *netlink.Handle
	link int
	have routes
}

// identify returns what tells a namespace from a later one of the same name.
func identify(ns string) (uint64, bool) {
	info, err := os.Stat(filepath.Join(namespace.Dir, ns))
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st.Ino, ok
}

func openKernel(ns string, id uint64, nic string, clusters []netip.Prefix) (*nodeKernel, error) {
	h, err := namespace.Netlink(ns)
	if err != nil {
		return nil, err
	}
	k := &nodeKernel{id: id, h: h, have: routes{}}
	if err := k.adopt(nic, clusters); err != nil {
		h.Close()
		return nil, err
	}
	return k, nil
}

func (k *nodeKernel) close() { k.h.Close() }

// adopt reads what an earlier run left, and sets the rules for the cluster.
func (k *nodeKernel) adopt(nic string, clusters []netip.Prefix) error {
	link, err := k.h.LinkByName(nic)
	if err != nil {
		return fmt.Errorf("find %s: %w", nic, err)
	}
	k.link = link.Attrs().Index
	for _, cluster := range clusters {
		rule := netlink.NewRule()
		rule.Priority, rule.Dst, rule.Table = clusterPriority, ipNet(cluster), unix.RT_TABLE_MAIN
		if err := k.h.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule for %s: %w", cluster, err)
		}
	}
	rules, err := k.h.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, r := range rules {
		if r.Priority == podPriority && r.Src != nil {
			if pod, ok := netip.AddrFromSlice(r.Src.IP); ok {
				k.have[pod.Unmap()] = nil // hops unknown: replaced by the next set
			}
		}
	}
	return nil
}

// set brings the node's pod routes to want. What differs is removed first and
// added then, with a gap, as in OVN-Kubernetes.
func (k *nodeKernel) set(want routes) error {
	for pod, hops := range k.have {
		if w, ok := want[pod]; ok && slices.Equal(w, hops) {
			continue
		}
		if err := k.remove(pod); err != nil {
			return fmt.Errorf("remove route of pod %s: %w", pod, err)
		}
		delete(k.have, pod)
	}
	for pod, hops := range want {
		if _, ok := k.have[pod]; ok {
			continue
		}
		if err := k.add(pod, hops); err != nil {
			return fmt.Errorf("add route of pod %s via %v: %w", pod, hops, err)
		}
		k.have[pod] = hops
	}
	return nil
}

func (k *nodeKernel) add(pod netip.Addr, hops []netip.Addr) error {
	// The route before the rule: a rule to an empty table is passed over, and
	// the packet takes the node's default route.
	route := k.route(pod)
	if len(hops) == 1 {
		route.LinkIndex, route.Gw = k.link, hops[0].AsSlice()
	} else {
		for _, h := range hops {
			route.MultiPath = append(route.MultiPath, &netlink.NexthopInfo{LinkIndex: k.link, Gw: h.AsSlice()})
		}
	}
	if err := k.h.RouteReplace(route); err != nil {
		return err
	}
	err := k.h.RuleAdd(podRule(pod))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (k *nodeKernel) remove(pod netip.Addr) error {
	if err := k.h.RuleDel(podRule(pod)); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := k.h.RouteDel(k.route(pod)); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func (k *nodeKernel) route(pod netip.Addr) *netlink.Route {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if pod.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return &netlink.Route{Dst: ipNet(all), Table: table(pod), Protocol: routeProtocol}
}

func podRule(pod netip.Addr) *netlink.Rule {
	r := netlink.NewRule()
	r.Priority, r.Src, r.Table = podPriority, ipNet(netip.PrefixFrom(pod, pod.BitLen())), table(pod)
	return r
}

// table is the pod's own routing table, above the tables that have names: its
// address without the highest eight bits, which the pods of a cluster share. Of
// an IPv6 address it is the end of the node's subnet and of the pod's own part.
func table(pod netip.Addr) int {
	b := pod.AsSlice()
	if pod.Is6() {
		b = []byte{b[7], b[14], b[15]}
	} else {
		b = b[1:]
	}
	return 1<<24 | int(b[0])<<16 | int(b[1])<<8 | int(b[2])
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
