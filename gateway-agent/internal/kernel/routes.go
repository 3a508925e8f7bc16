// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// observeRoutes returns the routes that carry our protocol.
func (k *Kernel) observeRoutes(links []linkInfo) (map[plan.Route]bool, error) {
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.index] = l.name
	}
	filter := netlink.Route{Protocol: plan.Protocol}
	list, err := consistent(func() ([]netlink.Route, error) {
		return k.nl.RouteListFiltered(netlink.FAMILY_ALL, &filter, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := make(map[plan.Route]bool, len(list))
	for _, r := range list {
		dst, _ := toPrefix(r.Dst)
		via, _ := netip.AddrFromSlice(r.Gw)
		out[plan.Route{Dst: dst, Via: via.Unmap(), Dev: names[r.LinkIndex]}] = true
	}
	return out, nil
}

func toPrefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits), ok
}

func fromPrefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func route(r plan.Route) (*netlink.Route, error) {
	out := &netlink.Route{Protocol: plan.Protocol, Dst: fromPrefix(r.Dst)}
	if r.Via.IsValid() {
		out.Gw = r.Via.AsSlice()
	}
	if r.Dev != "" {
		index, err := linkIndex(r.Dev)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", r.Dev, err)
		}
		out.LinkIndex = index
	}
	return out, nil
}

func (k *Kernel) setRoute(r plan.Route, replace bool) error {
	nr, err := route(r)
	if err != nil {
		return err
	}
	if replace {
		return k.nl.RouteReplace(nr)
	}
	err = k.nl.RouteAdd(nr)
	if errors.Is(err, unix.EEXIST) {
		if links, look := dumpLinks(false); look == nil {
			if ours, look := k.observeRoutes(links); look == nil && ours[r] {
				return nil
			}
		}
		return fmt.Errorf("somebody else's route to %s exists; remove it: %w", r.Dst, err)
	}
	return err
}

// delRoute removes a route of ours; one that is gone is no error.
func (k *Kernel) delRoute(r plan.Route) error {
	nr, err := route(r)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := k.nl.RouteDel(nr); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
