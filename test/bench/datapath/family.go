// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"egress-gateway.io/shared/tenant"
)

// All addresses are written as IPv4. Where IPv6 is measured, each is the low 32
// bits of an address in fd64::/96: 172.16.0.1 is fd64::ac10:1.
const sixBits = 96

// inFamily returns the address that a is in a family.
func inFamily(f tenant.Family, a netip.Addr) netip.Addr {
	if f != tenant.IPv6 {
		return a
	}
	four, six := a.As4(), [16]byte{0xfd, 0x64}
	copy(six[sixBits/8:], four[:])
	return netip.AddrFrom16(six)
}

// addressIn and prefixIn do it for what is written as text.
func addressIn(f tenant.Family, a string) netip.Addr { return inFamily(f, netip.MustParseAddr(a)) }

func prefixIn(f tenant.Family, s string) netip.Prefix {
	p := netip.MustParsePrefix(s)
	if f != tenant.IPv6 {
		return p
	}
	return netip.PrefixFrom(inFamily(f, p.Addr()), sixBits+p.Bits())
}

// four is the address that a stands for, written as IPv4.
func four(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	six := a.As16()
	return netip.AddrFrom4([4]byte(six[sixBits/8:]))
}

// mac is derived from an address, as gateway-agent does it for gateway IPs.
func mac(ip netip.Addr) net.HardwareAddr {
	if ip.Is4() {
		a := ip.As4()
		return net.HardwareAddr{2, 0, a[0], a[1], a[2], a[3]}
	}
	a := ip.As16()
	sum := sha256.Sum256(a[:])
	return append(net.HardwareAddr{6}, sum[:5]...)
}

// socket opens a socket of a family.
func socket(f tenant.Family, kind int) (int, error) {
	domain := unix.AF_INET
	if f == tenant.IPv6 {
		domain = unix.AF_INET6
	}
	return unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

// sockaddr is what bind and connect take; an invalid address is any of f's.
func sockaddr(f tenant.Family, a netip.Addr, port int) unix.Sockaddr {
	if f == tenant.IPv6 {
		s := &unix.SockaddrInet6{Port: port}
		if a.IsValid() {
			s.Addr = a.As16()
		}
		return s
	}
	s := &unix.SockaddrInet4{Port: port}
	if a.IsValid() {
		s.Addr = a.As4()
	}
	return s
}

// sysctls of all namespaces: IPv6 is either off, or without anything that would
// have it wait or speak by itself.
func sysctls(families []tenant.Family) [][2]string {
	out := [][2]string{{"ipv4/conf/default/rp_filter", "0"}, {"ipv4/conf/all/rp_filter", "0"}}
	if slices.Contains(families, tenant.IPv6) {
		return append(out, [2]string{"ipv6/conf/default/accept_dad", "0"}, [2]string{"ipv6/conf/default/accept_ra", "0"},
			[2]string{"ipv6/conf/default/router_solicitations", "0"})
	}
	return append(out, [2]string{"ipv6/conf/default/disable_ipv6", "1"}, [2]string{"ipv6/conf/all/disable_ipv6", "1"})
}

// host writes an address as a prefix of its own.
func host(a netip.Addr) string { return fmt.Sprintf("%s/%d", a, a.BitLen()) }
