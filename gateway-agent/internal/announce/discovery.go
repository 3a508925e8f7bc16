// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	ipv6HeaderLen = 40
	icmp6NS       = 135
	icmp6NA       = 136
	ndLen         = 24  // of both messages, without options
	ndHopLimit    = 255 // nobody off the link can send that (RFC 4861 section 3.1)
)

// message is a neighbour solicitation or advertisement (RFC 4861 sections 4.3
// and 4.4).
type message struct {
	solicits bool
	source   netip.Addr // of the packet
	target   netip.Addr
	mac      net.HardwareAddr // of the sender, or of the target in an advertisement; nil if it does not say
}

// discovery reads an ICMPv6 message that came from source.
func discovery(source netip.Addr, b []byte) (message, bool) {
	if len(b) < ndLen || b[0] != icmp6NS && b[0] != icmp6NA || b[1] != 0 {
		return message{}, false
	}
	m := message{solicits: b[0] == icmp6NS, source: source, target: netip.AddrFrom16([16]byte(b[8:ndLen]))}
	option := byte(2) // the target's
	if m.solicits {
		option = 1 // the source's
	}
	for rest := b[ndLen:]; len(rest) >= 8; {
		n := int(rest[1]) * 8
		if n == 0 {
			return message{}, false
		}
		if rest[0] == option && n == 8 {
			m.mac = bytes.Clone(rest[2:8])
		}
		rest = rest[min(n, len(rest)):]
	}
	return m, !m.target.IsMulticast()
}

// discoveryPacket reads an IPv6 packet. frame is the MAC that it came from.
func discoveryPacket(b []byte, frame net.HardwareAddr) (message, bool) {
	if len(b) < ipv6HeaderLen || b[0]>>4 != 6 || b[6] != unix.IPPROTO_ICMPV6 || b[7] != ndHopLimit {
		return message{}, false
	}
	end := ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:])) // there may be padding behind it
	if end > len(b) {
		return message{}, false
	}
	body := b[ipv6HeaderLen:end]
	source, to := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:ipv6HeaderLen]))
	m, ok := discovery(source, body)
	if ok && m.mac == nil {
		m.mac = bytes.Clone(frame)
	}
	return m, ok && icmp6Checksum(source, to, body) == 0
}

// claims returns the address that the sender of m says it has, and its MAC. A
// host that only checks whether an address is free claims none.
func (m message) claims() (net.HardwareAddr, netip.Addr, bool) {
	ip := m.target
	if m.solicits {
		ip = m.source
	}
	return m.mac, ip, m.mac != nil && !ip.IsUnspecified()
}

// answers is claims for somebody who checks: another host that checks the same
// address wants it as well (RFC 4862 section 5.4.3).
func (m message) answers() (net.HardwareAddr, netip.Addr, bool) {
	if m.solicits && m.source.IsUnspecified() {
		return m.mac, m.target, m.mac != nil
	}
	return m.claims()
}

// solicitedNode returns the multicast group that an address's owner listens to,
// and the MAC of that (RFC 4291 section 2.7.1, RFC 2464 section 7).
func solicitedNode(ip netip.Addr) (netip.Addr, net.HardwareAddr) {
	low := ip.As16()
	group := [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: low[13], 14: low[14], 15: low[15]}
	return netip.AddrFrom16(group), net.HardwareAddr{0x33, 0x33, 0xff, low[13], low[14], low[15]}
}

// detection asks for ip from no address, so that it claims nothing and nobody
// learns from it (RFC 4862 section 5.4.2). Whoever has it answers everybody.
func detection(mac net.HardwareAddr, ip netip.Addr) []byte {
	group, to := solicitedNode(ip)
	return icmp6Frame(to, mac, netip.IPv6Unspecified(), group, append([]byte{icmp6NS, 0, 0, 0, 0, 0, 0, 0}, ip.AsSlice()...))
}

// icmp6Frame completes body, whose checksum is still 0.
func icmp6Frame(to, from net.HardwareAddr, src, dst netip.Addr, body []byte) []byte {
	binary.BigEndian.PutUint16(body[2:], icmp6Checksum(src, dst, body))
	f := ethernet(to, from, etherIPv6)
	f = append(f, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, ndHopLimit)
	f = append(append(f, src.AsSlice()...), dst.AsSlice()...)
	return append(f, body...)
}

// discoverySocket returns a packet socket for solicitations and advertisements
// that arrive at any link, and for no other packet. It costs each IPv6 packet
// of the machine a look, so it is for moments.
func discoverySocket() (*os.File, error) {
	const typeAt = ipv6HeaderLen
	return packetSocket(etherIPv6, []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 6},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 4, K: unix.IPPROTO_ICMPV6},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: typeAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: icmp6NS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: icmp6NA},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	})
}

// claimSocket returns a socket for the solicitations and advertisements that the
// machine takes in itself. Other packets than ICMPv6 to the machine pay nothing
// for it. The messages come without their IPv6 header, checked for their
// checksum and hop limit.
func claimSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, err
	}
	const icmp6Filter = 1 // ICMPV6_FILTER of linux/icmpv6.h
	var blocked unix.ICMPv6Filter
	for i := range blocked.Data {
		blocked.Data[i] = 0xffffffff
	}
	for _, kind := range []uint{icmp6NS, icmp6NA} {
		blocked.Data[kind/32] &^= 1 << (kind % 32)
	}
	const networkHeader = 0xfff00000 // SKF_NET_OFF
	program := sockFprog([]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: networkHeader + 7},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: ndHopLimit},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	})
	if err = unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, icmp6Filter, &blocked); err == nil {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "claims"), nil
}
