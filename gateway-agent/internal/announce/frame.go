// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	arpRequest = 1
	arpReply   = 2
	arpLen     = 28

	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// ifreqAddr is struct ifreq with a socket address, which unix.Ifreq can not give.
type ifreqAddr struct {
	name   [unix.IFNAMSIZ]byte
	family uint16
	data   [22]byte
}

// linkOf asks for index and MAC of one link; the net package would list them all.
func linkOf(fd int, dev string) (index int, mac net.HardwareAddr, err error) {
	req, err := unix.NewIfreq(dev)
	if err != nil {
		return 0, nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, nil, err
	}
	index = int(req.Uint32())
	var hw ifreqAddr
	copy(hw.name[:], dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFHWADDR, uintptr(unsafe.Pointer(&hw))); errno != 0 {
		return 0, nil, errno
	}
	return index, net.HardwareAddr(hw.data[:6]), nil
}

// ethernet starts a frame.
func ethernet(to, from net.HardwareAddr, kind uint16) []byte {
	frame := append(append(make([]byte, 0, 86), to...), from...)
	return binary.BigEndian.AppendUint16(frame, kind)
}

// gratuitousARP returns a frame that binds ip to mac. Linux takes a reply only
// if the target's MAC is the sender's.
func gratuitousARP(mac net.HardwareAddr, ip netip.Addr, op uint16) []byte {
	f := ethernet(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, etherARP)
	f = append(f, 0, 1, 8, 0, 6, 4)
	f = binary.BigEndian.AppendUint16(f, op)
	f = append(append(f, mac...), ip.AsSlice()...)
	if op == arpReply {
		f = append(f, mac...)
	} else {
		f = append(f, 0, 0, 0, 0, 0, 0)
	}
	return append(f, ip.AsSlice()...)
}

// neighbourAdvertisement returns an unsolicited one that overrides what all
// nodes of the link know (RFC 4861 section 7.2.6).
func neighbourAdvertisement(mac net.HardwareAddr, ip netip.Addr) []byte {
	const router, override = 0x80, 0x20
	allNodes := netip.MustParseAddr("ff02::1")
	body := []byte{icmp6NA, 0, 0, 0, router | override, 0, 0, 0}
	body = append(append(body, ip.AsSlice()...), 2, 1)
	body = append(body, mac...)
	return icmp6Frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, ip, allNodes, body)
}

func icmp6Checksum(src, dst netip.Addr, body []byte) uint16 {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	pseudo = append(pseudo, body...)
	var sum uint32
	for i := 0; i+1 < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
