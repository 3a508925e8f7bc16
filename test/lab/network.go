// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab/namespace"
)

// bridge is the name of the bridge in each switch's namespace.
const bridge = "br0"

// makePart makes an empty namespace for a part of the lab.
func (l *Lab) makePart(part Part) error {
	if err := namespace.Create(l.Namespace(part)); err != nil {
		return err
	}
	h, err := namespace.Netlink(l.Namespace(part))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handles[part] = h
	return nil
}

// dropPart removes a part's namespace. Links into other parts that were made
// by plug must be unplugged before, if their ports' names shall be free at
// once: the kernel takes its time with the rest.
func (l *Lab) dropPart(part Part) error {
	l.mu.Lock()
	if h := l.handles[part]; h != nil {
		h.Close()
		delete(l.handles, part)
	}
	l.mu.Unlock()
	return namespace.Delete(l.Namespace(part))
}

// netlink returns the handle for a part, which may be used by several
// goroutines at once.
func (l *Lab) netlink(part Part) (*netlink.Handle, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.handles[part]
	if h == nil {
		return nil, fmt.Errorf("lab %s has no part %s", l.opts.Name, part)
	}
	return h, nil
}

// makeBridge makes a bridge with addresses. Ports forward from the first
// moment (no spanning tree, no delay), and multicast goes to all. Its MAC address
// is fixed: left alone a bridge takes that of its lowest port, so that a pod or
// node that joins would cut the others off until they ask for it anew.
func (l *Lab) makeBridge(part Part, name string, addrs ...string) error {
	h, err := l.netlink(part)
	if err != nil {
		return err
	}
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	first, err := netip.ParsePrefix(addrs[0])
	if err != nil {
		return fmt.Errorf("make bridge %s in %s: %w", name, part, err)
	}
	if attrs.HardwareAddr, err = net.ParseMAC(mac(first.Addr().String())); err != nil {
		return fmt.Errorf("make bridge %s in %s: %w", name, part, err)
	}
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return fmt.Errorf("make bridge %s in %s: %w", name, part, err)
	}
	return configure(h, name, addrs...)
}

// cable joins a NIC in one part to a port of a bridge in another.
type cable struct {
	part       Part
	nic        string
	mac        string // empty: the kernel's choice
	addrs      []string
	switchPart Part
	bridge     string
	port       string
}

func (l *Lab) plug(c cable) error {
	h, err := l.netlink(c.part)
	if err != nil {
		return err
	}
	sw, err := l.netlink(c.switchPart)
	if err != nil {
		return err
	}
	ns, err := netns.GetFromPath(filepath.Join(namespace.Dir, l.Namespace(c.switchPart)))
	if err != nil {
		return fmt.Errorf("open namespace of %s: %w", c.switchPart, err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.nic
	if c.mac != "" {
		if attrs.HardwareAddr, err = net.ParseMAC(c.mac); err != nil {
			return err
		}
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: c.port, PeerNamespace: netlink.NsFd(ns)}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("plug %s of %s into %s: %w", c.nic, c.part, c.switchPart, err)
	}
	port, err := sw.LinkByName(c.port)
	if err != nil {
		return fmt.Errorf("find port %s of %s: %w", c.port, c.switchPart, err)
	}
	master, err := sw.LinkByName(c.bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s of %s: %w", c.bridge, c.switchPart, err)
	}
	if err := sw.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("add port %s to bridge %s of %s: %w", c.port, c.bridge, c.switchPart, err)
	}
	if err := sw.LinkSetUp(port); err != nil {
		return fmt.Errorf("set port %s of %s up: %w", c.port, c.switchPart, err)
	}
	return configure(h, c.nic, c.addrs...)
}

// awaitPort waits until a switch forwards for a port. It learns of the carrier
// by a work queue of the kernel, and drops what comes earlier: an announcement,
// for example, that nobody repeats.
func (l *Lab) awaitPort(switchPart Part, port string) error {
	h, err := l.netlink(switchPart)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := h.LinkByName(port)
		if err != nil {
			return fmt.Errorf("find port %s of %s: %w", port, switchPart, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("port %s of %s has no carrier after 10 s", port, switchPart)
		}
	}
}

// unplug removes a port, and with it the NIC at the other end. A missing port
// is no error.
func (l *Lab) unplug(switchPart Part, port string) error {
	h, err := l.netlink(switchPart)
	if err != nil {
		return err
	}
	link, err := h.LinkByName(port)
	if _, missing := err.(netlink.LinkNotFoundError); missing {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find port %s of %s: %w", port, switchPart, err)
	}
	if err := h.LinkDel(link); err != nil {
		return fmt.Errorf("unplug %s from %s: %w", port, switchPart, err)
	}
	return nil
}

// configure adds addresses to a link and sets it up. IPv6 addresses work at
// once, whatever the link's settings and even before it has a carrier.
func configure(h *netlink.Handle, name string, addrs ...string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// addRoute adds `dst via gw dev nic`, replacing one to the same dst. dst may be
// "default"; an empty gw makes it unreachable.
func (l *Lab) addRoute(part Part, dst, gw, nic string) error {
	h, err := l.netlink(part)
	if err != nil {
		return err
	}
	if dst == "default" {
		dst = "0.0.0.0/0"
	}
	to, err := netlink.ParseIPNet(dst)
	if err != nil {
		return fmt.Errorf("route to %s: %w", dst, err)
	}
	r := &netlink.Route{Dst: to}
	if gw == "" {
		r.Type = unreachable
	} else {
		link, err := h.LinkByName(nic)
		if err != nil {
			return fmt.Errorf("find link %s of %s: %w", nic, part, err)
		}
		r.LinkIndex, r.Gw = link.Attrs().Index, net.ParseIP(gw)
	}
	if err := h.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s via %q in %s: %w", dst, gw, part, err)
	}
	return nil
}

// dropRoute removes a route; a missing one is no error.
func (l *Lab) dropRoute(part Part, dst netip.Prefix) error {
	h, err := l.netlink(part)
	if err != nil {
		return err
	}
	to, err := netlink.ParseIPNet(dst.String())
	if err != nil {
		return fmt.Errorf("route to %s: %w", dst, err)
	}
	if err := h.RouteDel(&netlink.Route{Dst: to}); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s of %s: %w", dst, part, err)
	}
	return nil
}

// readdress replaces an address of a link.
func (l *Lab) readdress(part Part, nic, old, next string) error {
	h, err := l.netlink(part)
	if err != nil {
		return err
	}
	link, err := h.LinkByName(nic)
	if err != nil {
		return fmt.Errorf("find link %s of %s: %w", nic, part, err)
	}
	add, err := netlink.ParseAddr(next)
	if err != nil {
		return fmt.Errorf("address %s: %w", next, err)
	}
	// The new one first: the kernel drops routes with a next hop that no
	// address of the link covers any more.
	if err := h.AddrReplace(link, add); err != nil {
		return fmt.Errorf("add %s to %s of %s: %w", next, nic, part, err)
	}
	if old == next {
		return nil
	}
	return dropAddress(h, nic, old)
}

func dropAddress(h *netlink.Handle, nic, address string) error {
	link, err := h.LinkByName(nic)
	if err != nil {
		return fmt.Errorf("find link %s: %w", nic, err)
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return fmt.Errorf("address %s: %w", address, err)
	}
	if err := h.AddrDel(link, addr); err != nil {
		return fmt.Errorf("remove %s from %s: %w", address, nic, err)
	}
	return nil
}
