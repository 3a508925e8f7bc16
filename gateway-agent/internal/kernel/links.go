// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

const (
	// rtextFilterSkipStats (linux/rtnetlink.h) leaves statistics out of a dump.
	rtextFilterSkipStats = 1 << 3
	// Indices into IFLA_INET6_CONF (linux/ipv6.h).
	devconfAcceptRA    = 3
	devconfAutoconf    = 5
	devconfDisableIPv6 = 26
	// iflaInet6AddrGenMode (linux/if_link.h) holds addrGenNone on links that
	// make up no address.
	iflaInet6AddrGenMode = 8
	addrGenNone          = 1
)

// linkInfo is what one message of a link dump tells.
type linkInfo struct {
	index, parent int
	name, alias   string
	kind          string
	up, private   bool
	broadcast     bool // it takes copies of broadcast frames
	ipv6          bool
	ipv6Alone     bool // it takes no router advertisement and makes up no address
	mac           string
	rx, tx        Counter
}

// dumpLinks reads all links in one dump, and parses no more of them than is
// needed.
func dumpLinks(stats bool) ([]linkInfo, error) {
	about := []nl.NetlinkRequestData{nl.NewIfInfomsg(unix.AF_UNSPEC)}
	if !stats {
		about = append(about, nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(rtextFilterSkipStats)))
	}
	links, err := dump(unix.RTM_GETLINK, parseLink, about...)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

func parseLink(m []byte) (l linkInfo, err error) {
	if len(m) < unix.SizeofIfInfomsg {
		return l, errMalformed
	}
	head := nl.DeserializeIfInfomsg(m)
	l.index, l.up = int(head.Index), head.Flags&unix.IFF_UP != 0
	for list := (attributes{m[unix.SizeofIfInfomsg:]}); ; {
		kind, value, more := list.next()
		switch {
		case !more && list.malformed():
			return l, errMalformed
		case !more:
			return l, nil
		case kind == unix.IFLA_IFNAME:
			l.name = text(value)
		case kind == unix.IFLA_IFALIAS:
			l.alias = text(value)
		case kind == unix.IFLA_LINK && len(value) == 4:
			l.parent = int(binary.NativeEndian.Uint32(value))
		case kind == unix.IFLA_ADDRESS:
			l.mac = net.HardwareAddr(value).String()
		case kind == unix.IFLA_LINKINFO:
			l.kind, l.private, l.broadcast = parseLinkInfo(value)
		case kind == unix.IFLA_AF_SPEC:
			l.ipv6, l.ipv6Alone = parseIPv6(value)
		case kind == unix.IFLA_STATS64 && len(value) >= 32:
			u := binary.NativeEndian.Uint64
			l.rx = Counter{u(value), u(value[16:])}
			l.tx = Counter{u(value[8:]), u(value[24:])}
		}
	}
}

func parseLinkInfo(b []byte) (kind string, private, broadcast bool) {
	if kind = text(find(b, unix.IFLA_INFO_KIND)); kind == "macvlan" {
		kind = "macvlan" // no copy of it for each link
	}
	data := find(b, unix.IFLA_INFO_DATA)
	if mode := find(data, unix.IFLA_MACVLAN_MODE); len(mode) >= 4 {
		private = binary.NativeEndian.Uint32(mode) == nl.MACVLAN_MODE_PRIVATE
	}
	if queue := find(data, unix.IFLA_MACVLAN_BC_QUEUE_LEN); len(queue) >= 4 { // kernels before 5.11 do not tell
		broadcast = binary.NativeEndian.Uint32(queue) != plan.BroadcastQueue
	}
	return kind, private, broadcast
}

// parseIPv6 tells whether a link speaks IPv6, and whether it keeps to the
// addresses that it is given.
func parseIPv6(b []byte) (on, alone bool) {
	of := find(b, unix.AF_INET6)
	conf, mode := find(of, unix.IFLA_INET6_CONF), find(of, iflaInet6AddrGenMode)
	if len(conf) < 4*(devconfDisableIPv6+1) {
		return false, false
	}
	value := func(index int) uint32 { return binary.NativeEndian.Uint32(conf[4*index:]) }
	return value(devconfDisableIPv6) == 0, len(mode) > 0 && mode[0] == addrGenNone && value(devconfAcceptRA) == 0 && value(devconfAutoconf) == 0
}

// ourLinks picks the tenants' links from a dump. A link of another type that
// has a name of ours is not ours.
func ourLinks(all []linkInfo) map[string]plan.Link {
	names := make(map[int]string, len(all))
	for _, l := range all {
		names[l.index] = l.name
	}
	out := make(map[string]plan.Link)
	for _, l := range all {
		if link, ours := ourLink(l, names); ours {
			out[l.name] = link
		}
	}
	return out
}

func ourLink(l linkInfo, names map[int]string) (plan.Link, bool) {
	n, named := plan.LinkNumber(l.name)
	if !named || l.kind != "macvlan" {
		return plan.Link{}, false
	}
	return plan.Link{
		Name: l.name, Number: n, Tenant: l.alias, Parent: names[l.parent], MAC: l.mac,
		IPv6: l.ipv6, Ready: l.up && l.private && !l.broadcast && (l.ipv6Alone || !l.ipv6),
	}, true
}

// makeLink makes a link, which is down, or mends one that exists, and names its
// tenant. A link that is down counts as half-made after a crash.
func (k *Kernel) makeLink(l plan.Link) error {
	parent, err := k.linkIndex(l.Parent)
	if err != nil {
		return fmt.Errorf("parent %s: %w", l.Parent, err)
	}
	req, err := k.newLink(l, parent)
	if err != nil {
		return err
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	exists := errors.Is(err, unix.EEXIST)
	if err != nil && !exists {
		return fmt.Errorf("add link: %w", err)
	}
	if err := k.setIPv6(l); err != nil {
		return err
	}
	req = k.nameLink(l)
	if exists { // for a new one it would only cost a look at all others
		req.AddData(macvlanInfo())
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set link: %w (is there a foreign link of this name?)", err)
	}
	return nil
}

// newLink is the request for a link on the NIC with index parent.
func (k *Kernel) newLink(l plan.Link, parent int) (*nl.NetlinkRequest, error) {
	mac, err := net.ParseMAC(l.MAC)
	if err != nil {
		return nil, err
	}
	req := k.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(l.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(uint32(parent))))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	req.AddData(macvlanInfo())
	return req, nil
}

// nameLink is the request that names the tenant. It is one of its own, while the
// link is down: the kernel takes no name where it makes a link, and tells all that
// listen of the name of a link that is up; IPv6 then goes over all routes.
func (k *Kernel) nameLink(l plan.Link) *nl.NetlinkRequest {
	req := k.setLink(l.Name, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(l.Tenant)))
	return req
}

// raiseLink sets a link up.
func (k *Kernel) raiseLink(name string) error {
	if _, err := k.setLink(name, unix.IFF_UP).Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	return nil
}

// setLink begins a request that changes a link and sets flags.
func (k *Kernel) setLink(name string, flags uint32) *nl.NetlinkRequest {
	req := k.request(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Flags, head.Change = flags, flags
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return req
}

// request is a request over a socket that is open already.
func (k *Kernel) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = k.sockets
	return req
}

func macvlanInfo() *nl.RtAttr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("macvlan"))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(unix.IFLA_MACVLAN_MODE, nl.Uint32Attr(nl.MACVLAN_MODE_PRIVATE))
	data.AddRtAttr(unix.IFLA_MACVLAN_BC_QUEUE_LEN, nl.Uint32Attr(plan.BroadcastQueue))
	return info
}

// setIPv6 keeps IPv6 off a link whose tenant has none: with it on, the link
// would send router solicitations and multicast reports, which pull its MAC to
// a port where the tenant no longer is. Addresses are never made up by itself.
func (k *Kernel) setIPv6(l plan.Link) error {
	values := [][2]string{{"disable_ipv6", "1"}}
	if l.IPv6 {
		values = [][2]string{{"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"autoconf", "0"}, {"disable_ipv6", "0"}}
	}
	dir := filepath.Join(k.sysctl, "net/ipv6/conf", l.Name)
	for _, v := range values {
		err := os.WriteFile(filepath.Join(dir, v[0]), []byte(v[1]), 0o644)
		if errors.Is(err, fs.ErrNotExist) && !l.IPv6 {
			return nil // a kernel without IPv6
		}
		if err != nil {
			return fmt.Errorf("IPv6 of the link: %w", err)
		}
	}
	return nil
}

// delLink removes a link of ours; one that is gone is no error.
func (k *Kernel) delLink(name string) error {
	if _, ours := plan.LinkNumber(name); !ours {
		return fmt.Errorf("link %s is not ours", name)
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// leavingGroup is the link group that links are put into to be removed at once.
// No other link may be in it: 0x65677700 ("egw") is nobody's by accident.
const leavingGroup = 0x65677700

// delLinks removes links of ours at once. One by one, each removal waits for
// all processors to forget the link: 20 to 50 ms.
func (k *Kernel) delLinks(steps []plan.Step) error {
	for _, s := range steps {
		name := s.(plan.DelLink).Name
		if _, ours := plan.LinkNumber(name); !ours {
			return fmt.Errorf("link %s is not ours", name)
		}
		req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(leavingGroup)))
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(leavingGroup)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// linkIndex asks for one link by name. net.InterfaceByName would list them all.
func (k *Kernel) linkIndex(name string) (int, error) {
	req, err := k.askLink(name, unix.SIOCGIFINDEX)
	if err != nil {
		return 0, err
	}
	return int(req.Uint32()), nil
}

// isUp tells whether a link is up.
func (k *Kernel) isUp(name string) (bool, error) {
	req, err := k.askLink(name, unix.SIOCGIFFLAGS)
	if err != nil {
		return false, err
	}
	return req.Uint16()&unix.IFF_UP != 0, nil
}

// askLink makes one request of netdevice(7), which any socket takes.
func (k *Kernel) askLink(name string, request uint) (*unix.Ifreq, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	return req, unix.IoctlIfreq(k.sockets[unix.NETLINK_ROUTE].Socket.GetFd(), request, req)
}
