// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// observeRoutes returns the routes of the main table that carry our protocol.
// The kernel picks them, where it can (Linux 4.20): its tables hold two routes
// for each tenant, and may hold those of a router.
func (k *Kernel) observeRoutes(names map[int]string) (map[plan.Route]bool, error) {
	out := make(map[plan.Route]bool)
	for _, f := range tenant.Families() {
		list, err := k.listRoutes(f, plan.Protocol)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			out[plan.Route{Dst: r.dst, Via: r.via, Dev: names[r.index]}] = true
		}
	}
	return out, nil
}

// routeInfo is what one message of a route dump tells.
type routeInfo struct {
	dst   netip.Prefix
	via   netip.Addr
	index int
}

func (k *Kernel) listRoutes(f tenant.Family, protocol uint8) ([]routeInfo, error) {
	family := unix.AF_INET
	if f == tenant.IPv6 {
		family = unix.AF_INET6
	}
	return consistent(func() ([]routeInfo, error) {
		req := k.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family), Table: unix.RT_TABLE_MAIN, Protocol: protocol}})
		messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		if err != nil && !errors.Is(err, unix.ENOENT) { // no table yet
			return nil, err
		}
		var out []routeInfo
		for _, m := range messages {
			if head := nl.DeserializeRtMsg(m); head.Table != unix.RT_TABLE_MAIN || head.Protocol != protocol || head.Flags&unix.RTM_F_CLONED != 0 {
				continue
			}
			r, err := parseRoute(m)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
		return out, nil
	})
}

func parseRoute(m []byte) (routeInfo, error) {
	head := nl.DeserializeRtMsg(m)
	attrs, err := nl.ParseRouteAttr(m[head.Len():])
	if err != nil {
		return routeInfo{}, err
	}
	to := netip.IPv4Unspecified()
	if head.Family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	var r routeInfo
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_GATEWAY:
			r.via, _ = netip.AddrFromSlice(a.Value)
		case unix.RTA_OIF:
			r.index = int(nl.NativeEndian().Uint32(a.Value))
		}
	}
	r.dst = netip.PrefixFrom(to, int(head.Dst_len))
	return r, nil
}

func fromPrefix(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (k *Kernel) route(r plan.Route) (*netlink.Route, error) {
	out := &netlink.Route{Protocol: plan.Protocol, Dst: fromPrefix(r.Dst)}
	if r.Via.IsValid() {
		out.Gw = r.Via.AsSlice()
	}
	if r.Dev != "" {
		index, err := k.linkIndex(r.Dev)
		if err != nil {
			return nil, fmt.Errorf("link %s: %w", r.Dev, err)
		}
		out.LinkIndex = index
	}
	return out, nil
}

func (k *Kernel) setRoute(r plan.Route, replace bool) error {
	nr, err := k.route(r)
	if err != nil {
		return err
	}
	if replace {
		return k.nl.RouteReplace(nr)
	}
	err = k.nl.RouteAdd(nr)
	if errors.Is(err, unix.EEXIST) {
		if ours, look := k.observeRoutes(k.mirror.names); look == nil && ours[r] {
			return nil
		}
		return fmt.Errorf("somebody else's route to %s exists; remove it: %w", r.Dst, err)
	}
	return err
}

// delRoute removes a route of ours; one that is gone is no error.
func (k *Kernel) delRoute(r plan.Route) error {
	nr, err := k.route(r)
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
