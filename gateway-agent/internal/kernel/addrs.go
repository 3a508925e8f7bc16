// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// ifaProto (linux/if_addr.h) is known since Linux 5.18; older kernels ignore it.
const ifaProto = 11

// forever is the lifetime of an address that does not end.
const forever = 0xffffffff

// addrInfo is what one message of an address dump tells.
type addrInfo struct {
	dev    string
	prefix netip.Prefix
	label  string
	proto  byte
	link   bool // scope link or host
}

func dumpAddrs(links []linkInfo) ([]addrInfo, error) {
	names := make(map[uint32]string, len(links))
	for _, l := range links {
		names[uint32(l.index)] = l.name
	}
	parse := func(m []byte) (addrInfo, error) { return parseAddr(m, names) }
	addrs, err := dump(unix.RTM_GETADDR, parse, nl.NewIfAddrmsg(unix.AF_UNSPEC))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return addrs, nil
}

func parseAddr(m []byte, names map[uint32]string) (addrInfo, error) {
	if len(m) < unix.SizeofIfAddrmsg {
		return addrInfo{}, errMalformed
	}
	head := nl.DeserializeIfAddrmsg(m)
	a := addrInfo{dev: names[head.Index], link: head.Scope >= unix.RT_SCOPE_LINK}
	var ip, local netip.Addr
	list := attributes{m[unix.SizeofIfAddrmsg:]}
	for kind, value, more := list.next(); more; kind, value, more = list.next() {
		switch kind {
		case unix.IFA_ADDRESS:
			ip, _ = netip.AddrFromSlice(value)
		case unix.IFA_LOCAL: // differs from IFA_ADDRESS on point-to-point links
			local, _ = netip.AddrFromSlice(value)
		case unix.IFA_LABEL:
			a.label = text(value)
		case ifaProto:
			if len(value) > 0 {
				a.proto = value[0]
			}
		}
	}
	if list.malformed() {
		return addrInfo{}, errMalformed
	}
	if local.IsValid() {
		ip = local
	}
	a.prefix = netip.PrefixFrom(ip, int(head.Prefixlen))
	return a, nil
}

// ours tells whether an address is the gateway's to manage: any on a tenant's
// link, and host addresses elsewhere that carry our label or protocol.
func (a addrInfo) ours(tenantLink bool) bool {
	if !a.prefix.IsSingleIP() || a.link {
		return false
	}
	return tenantLink || a.proto == plan.Protocol || a.label != "" && a.label == plan.AddrLabel(a.dev)
}

// addAddr adds an address of ours. That it is there already is no error if it
// is ours, as a step may be carried out twice.
func (k *Kernel) addAddr(a plan.Addr) error {
	index, err := k.linkIndex(a.Dev)
	if err != nil {
		return fmt.Errorf("link %s: %w", a.Dev, err)
	}
	_, err = k.newAddr(a, index).Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EEXIST) {
		if own, look := k.ownAddr(a); look != nil || !own {
			return errors.Join(fmt.Errorf("%s has the address %s already, and it is not the gateway's; remove it by hand", a.Dev, a.IP), look)
		}
		return nil
	}
	return err
}

func (k *Kernel) ownAddr(a plan.Addr) (bool, error) {
	links, err := dumpLinks(false)
	if err != nil {
		return false, err
	}
	all, err := dumpAddrs(links)
	if err != nil {
		return false, err
	}
	for _, x := range all {
		if _, tenantLink := plan.LinkNumber(x.dev); x.dev == a.Dev && x.prefix.Addr() == a.IP {
			return x.ours(tenantLink), nil
		}
	}
	return false, nil
}

// delAddr removes an address; one that is gone is no error.
func (k *Kernel) delAddr(a plan.Addr) error {
	index, err := k.linkIndex(a.Dev)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", a.Dev, err)
	}
	_, err = k.addrRequest(a, index, unix.RTM_DELADDR, unix.NLM_F_ACK).Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

// addrRequest is a request about an address of the link with that index.
func (k *Kernel) addrRequest(a plan.Addr, index, kind, flags int) *nl.NetlinkRequest {
	req := k.request(kind, flags)
	family := unix.AF_INET
	if a.IP.Is6() {
		family = unix.AF_INET6
	}
	head := nl.NewIfAddrmsg(family)
	head.Index, head.Prefixlen = uint32(index), uint8(a.IP.BitLen())
	req.AddData(head)
	ip := a.IP.AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip))
	return req
}

// newAddr is the request for an address of ours.
func (k *Kernel) newAddr(a plan.Addr, index int) *nl.NetlinkRequest {
	req := k.addrRequest(a, index, unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewRtAttr(ifaProto, []byte{plan.Protocol}))
	if a.IP.Is6() {
		// Duplicate address detection would keep the address silent for seconds.
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)))
		// Deprecated, for ever: else the VM's own connections would choose a
		// tenant's address for their source where it is more like the destination
		// than the VM's own (RFC 6724 section 5, rule 8).
		req.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, binary.NativeEndian.AppendUint64(
			binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 0), forever), 0)))
	} else if _, tenantLink := plan.LinkNumber(a.Dev); !tenantLink {
		req.AddData(nl.NewRtAttr(unix.IFA_LABEL, nl.ZeroTerminated(plan.AddrLabel(a.Dev))))
	}
	return req
}
