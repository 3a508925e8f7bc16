// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Raw sends packets with a header of the caller's making.
type Raw struct {
	n      *Net
	fd     int
	source netip.Addr
}

// Raw opens a sender whose packets are routed as those of source.
func (n *Net) Raw(source string) *Raw {
	n.t.Helper()
	r := &Raw{n: n, source: netip.MustParseAddr(source)}
	var err error
	n.Do(func() {
		family, from := unix.AF_INET, sockaddr(r.source)
		if r.source.Is6() {
			family = unix.AF_INET6
		}
		if r.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return
		}
		_ = unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
		err = unix.Bind(r.fd, from)
	})
	if err != nil {
		n.t.Fatalf("raw socket from %s: %v", source, err)
	}
	n.t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

// Send sends one packet: an IP header from the sender's source to to, and
// payload, which begins with the header of protocol.
func (r *Raw) Send(to netip.Addr, protocol byte, payload []byte) {
	r.n.t.Helper()
	r.SendPacket(to, IP(r.source, to, protocol, payload))
}

// SendPacket sends a whole packet towards to.
func (r *Raw) SendPacket(to netip.Addr, packet []byte) {
	r.n.t.Helper()
	if err := unix.Sendto(r.fd, packet, 0, sockaddr(to)); err != nil {
		r.n.t.Fatalf("send from %s to %s: %v", r.source, to, err)
	}
}

// UDP sends a datagram of one byte.
func (r *Raw) UDP(from uint16, to netip.AddrPort) {
	r.n.t.Helper()
	r.Send(to.Addr(), unix.IPPROTO_UDP, UDP(netip.AddrPortFrom(r.source, from), to, []byte("!")))
}

// IPv4 makes a packet that is no fragment.
func IPv4(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	b := make([]byte, 20, 20+len(payload))
	b[0], b[8], b[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], Checksum(b))
	return append(b, payload...)
}

// IP makes a packet of the family of the addresses, that is no fragment.
func IP(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	if src.Is4() {
		return IPv4(src, dst, protocol, payload)
	}
	b := []byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), protocol, 64}
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), payload...)
}

// Fragment makes a part of a packet: payload stands at from, a multiple of 8.
func Fragment(src, dst netip.Addr, protocol byte, id uint16, from int, more bool, payload []byte) []byte {
	if src.Is6() {
		field := uint16(from)
		if more {
			field |= 1
		}
		h := []byte{protocol, 0, byte(field >> 8), byte(field), 0, 0, byte(id >> 8), byte(id)}
		return IP(src, dst, unix.IPPROTO_FRAGMENT, append(h, payload...))
	}
	b := IPv4(src, dst, protocol, payload)
	field := uint16(from / 8)
	if more {
		field |= 0x2000
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], field)
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], Checksum(b[:20]))
	return b
}

// UDP makes a datagram, with the checksum of the two addresses.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[6:], Checksum(append(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_UDP, len(b)), b...)))
	return b
}

// TCP makes a segment without payload, with the checksum of the two addresses.
func TCP(src, dst netip.AddrPort, flags byte, seq, ack uint32) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 65535)
	binary.BigEndian.PutUint16(b[16:], Checksum(append(pseudo(src.Addr(), dst.Addr(), unix.IPPROTO_TCP, len(b)), b...)))
	return b
}

// pseudo is the header that checksums cover besides; that of IPv6 holds the same
// in other places.
func pseudo(src, dst netip.Addr, protocol byte, length int) []byte {
	return append(append(src.AsSlice(), dst.AsSlice()...), 0, protocol, byte(length>>8), byte(length))
}

// ICMPError makes an error about packet, from src to dst: destination
// unreachable, port.
func ICMPError(src, dst netip.Addr, packet []byte) []byte {
	if src.Is6() {
		b := append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, packet[:min(len(packet), 48)]...)
		binary.BigEndian.PutUint16(b[2:], Checksum(append(pseudo(src, dst, unix.IPPROTO_ICMPV6, len(b)), b...)))
		return b
	}
	b := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, packet[:min(len(packet), 28)]...)
	binary.BigEndian.PutUint16(b[2:], Checksum(b))
	return b
}

// Hops returns a copy of a packet that n routers at most pass on.
func Hops(packet []byte, n byte) []byte {
	b := slices.Clone(packet)
	if b[0]>>4 == 6 {
		b[7] = n
		return b
	}
	b[8], b[10], b[11] = n, 0, 0
	binary.BigEndian.PutUint16(b[10:], Checksum(b[:20]))
	return b
}

// ICMPEcho makes an echo request from src to dst.
func ICMPEcho(src, dst netip.Addr, data []byte) []byte {
	if src.Is6() {
		b := append([]byte{128, 0, 0, 0, 0x12, 0x34, 0, 1}, data...)
		binary.BigEndian.PutUint16(b[2:], Checksum(append(pseudo(src, dst, unix.IPPROTO_ICMPV6, len(b)), b...)))
		return b
	}
	b := append([]byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}, data...)
	binary.BigEndian.PutUint16(b[2:], Checksum(b))
	return b
}

// Checksum is that of the Internet protocols.
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
