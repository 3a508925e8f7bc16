// SPDX-License-Identifier: Apache-2.0

package tenant

import "net/netip"

// Family is an IP version.
type Family int

// The two families. Their values are the version numbers.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both in the order in which they are always worked through.
func Families() []Family { return []Family{IPv4, IPv6} }

// FamilyOf returns the family of a; an IPv4 address in IPv6 form is IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() || a.Is4In6() {
		return IPv4
	}
	return IPv6
}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// Bits is the length of an address: 32 or 128.
func (f Family) Bits() int {
	if f == IPv6 {
		return 128
	}
	return 32
}

// Addrs returns the addresses of family f, in their order.
func (f Family) Addrs(list []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if FamilyOf(a) == f {
			out = append(out, a)
		}
	}
	return out
}

// Prefixes returns the prefixes of family f, in their order.
func (f Family) Prefixes(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if FamilyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	return out
}

// First returns the first address of family f, if there is one.
func (f Family) First(list []netip.Addr) (netip.Addr, bool) {
	for _, a := range list {
		if FamilyOf(a) == f {
			return a, true
		}
	}
	return netip.Addr{}, false
}
