// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Raw sends packets with a header of the caller's making, over IPv4.
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
		if r.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return
		}
		_ = unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
		err = unix.Bind(r.fd, &unix.SockaddrInet4{Addr: r.source.As4()})
	})
	if err != nil {
		n.t.Fatalf("raw socket from %s: %v", source, err)
	}
	n.t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

// Send sends one packet: an IPv4 header from the sender's source to to, and
// payload, which begins with the header of protocol.
func (r *Raw) Send(to netip.Addr, protocol byte, payload []byte) {
	r.n.t.Helper()
	r.SendPacket(to, IPv4(r.source, to, protocol, payload))
}

// SendPacket sends a whole packet towards to.
func (r *Raw) SendPacket(to netip.Addr, packet []byte) {
	r.n.t.Helper()
	if err := unix.Sendto(r.fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		r.n.t.Fatalf("send from %s to %s: %v", r.source, to, err)
	}
}

// UDP sends a datagram of one byte.
func (r *Raw) UDP(from uint16, to netip.AddrPort) {
	r.n.t.Helper()
	r.Send(to.Addr(), unix.IPPROTO_UDP, UDP(from, to.Port(), []byte("!")))
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

// UDP makes a datagram without checksum.
func UDP(from, to uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
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
	pseudo := append(append(src.Addr().AsSlice(), dst.Addr().AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(b)))
	binary.BigEndian.PutUint16(b[16:], Checksum(append(pseudo, b...)))
	return b
}

// ICMPError makes an ICMP error about packet: destination unreachable, port.
func ICMPError(packet []byte) []byte {
	b := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, packet[:min(len(packet), 28)]...)
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
