// SPDX-License-Identifier: Apache-2.0

// Package iprange knows sets of consecutive IP addresses, as an EgressPool
// writes them. It is pure: no I/O, no clock. Its values are immutable and safe
// for concurrent use.
package iprange

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// Range is a set of consecutive addresses of one family. The zero value is no
// range; Parse makes them.
type Range struct {
	text        string
	first, last netip.Addr // all that it covers
	low, high   netip.Addr // what may be given to somebody
}

// Parse reads a subnet ("192.0.2.0/28", without host bits) or two addresses
// joined by a dash ("192.0.2.10-192.0.2.20", both included).
func Parse(s string) (Range, error) {
	if strings.Contains(s, "/") {
		return parseSubnet(s)
	}
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return Range{}, fmt.Errorf("range %q: want a subnet (192.0.2.0/28) or two addresses joined by a dash (192.0.2.10-192.0.2.20)", s)
	}
	first, err := netip.ParseAddr(from)
	if err != nil {
		return Range{}, fmt.Errorf("range %q: %w", s, err)
	}
	last, err := netip.ParseAddr(to)
	if err != nil {
		return Range{}, fmt.Errorf("range %q: %w", s, err)
	}
	if first.BitLen() != last.BitLen() {
		return Range{}, fmt.Errorf("range %q: both ends must be of one IP family", s)
	}
	if last.Less(first) {
		return Range{}, fmt.Errorf("range %q: it ends before it begins; exchange the two addresses", s)
	}
	return checked(Range{text: s, first: first, last: last, low: first, high: last})
}

func parseSubnet(s string) (Range, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return Range{}, fmt.Errorf("range %q: %w", s, err)
	}
	if p != p.Masked() {
		return Range{}, fmt.Errorf("range %q has host bits set; write %s", s, p.Masked())
	}
	r := Range{text: s, first: p.Addr(), last: lastOf(p)}
	r.low, r.high = r.first, r.last
	// With two host bits or more the first address is the network's own (IPv4)
	// or the subnet router's anycast address (IPv6); IPv4's last is broadcast.
	if p.Addr().BitLen()-p.Bits() >= 2 {
		r.low = r.first.Next()
		if p.Addr().Is4() {
			r.high = r.last.Prev()
		}
	}
	return checked(r)
}

// checked refuses ranges whose addresses no host can have. Both ends are
// looked at, and no such set lies strictly between two addresses that are fine
// but for absurdly large ranges, which tenant.ValidateAddr catches one by one.
func checked(r Range) (Range, error) {
	if err := errors.Join(tenant.ValidateAddr(r.low), tenant.ValidateAddr(r.high)); err != nil {
		return Range{}, fmt.Errorf("range %q: %w", r.text, err)
	}
	return r, nil
}

// lastOf returns the highest address of p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b) // b has the length of an address
	return a
}

// String returns the text that was parsed.
func (r Range) String() string { return r.text }

// Family returns the family of its addresses.
func (r Range) Family() tenant.Family { return tenant.FamilyOf(r.first) }

// Low and High are the lowest and the highest address that may be given away.
func (r Range) Low() netip.Addr { return r.low }

// High is the highest address that may be given away.
func (r Range) High() netip.Addr { return r.high }

// Covers says whether a lies in the range, be it usable or not.
func (r Range) Covers(a netip.Addr) bool {
	return a.BitLen() == r.first.BitLen() && r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0
}

// Usable says whether a lies in the range and may be given away.
func (r Range) Usable(a netip.Addr) bool {
	return a.BitLen() == r.low.BitLen() && r.low.Compare(a) <= 0 && a.Compare(r.high) <= 0
}

// Overlaps says whether the two ranges have an address in common.
func (r Range) Overlaps(o Range) bool {
	return r.first.BitLen() == o.first.BitLen() && r.first.Compare(o.last) <= 0 && o.first.Compare(r.last) <= 0
}

// MaxSize is what Size returns for ranges that are larger: the largest integer
// that every JSON reader can represent.
const MaxSize = 1<<53 - 1

// Size returns the number of usable addresses, at most MaxSize.
func (r Range) Size() int64 {
	lowHi, lowLo := words(r.low)
	highHi, highLo := words(r.high)
	lo, borrow := bits.Sub64(highLo, lowLo, 0)
	hi, _ := bits.Sub64(highHi, lowHi, borrow)
	if hi != 0 || lo >= MaxSize {
		return MaxSize
	}
	return int64(lo) + 1
}

func words(a netip.Addr) (hi, lo uint64) {
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

// Set is a list of ranges.
type Set []Range

// ParseSet parses all of texts. It returns the good ones and the joined errors
// of the others; ranges that overlap an earlier one are errors, too.
func ParseSet[T ~string](texts []T) (Set, error) {
	var set Set
	var errs []error
	for _, text := range texts {
		r, err := Parse(string(text))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if o, ok := set.Overlapping(r); ok {
			errs = append(errs, fmt.Errorf("ranges %s and %s overlap", o, r))
			continue
		}
		set = append(set, r)
	}
	return set, errors.Join(errs...)
}

// Overlapping returns the first range of s that overlaps r.
func (s Set) Overlapping(r Range) (Range, bool) {
	for _, o := range s {
		if o.Overlaps(r) {
			return o, true
		}
	}
	return Range{}, false
}

// Covers says whether any range covers a.
func (s Set) Covers(a netip.Addr) bool {
	for _, r := range s {
		if r.Covers(a) {
			return true
		}
	}
	return false
}

// Usable says whether a may be given away from any range.
func (s Set) Usable(a netip.Addr) bool {
	for _, r := range s {
		if r.Usable(a) {
			return true
		}
	}
	return false
}

// Has says whether any range is of family f.
func (s Set) Has(f tenant.Family) bool {
	for _, r := range s {
		if r.Family() == f {
			return true
		}
	}
	return false
}

// Size returns the number of usable addresses, at most MaxSize.
func (s Set) Size() int64 {
	var n int64
	for _, r := range s {
		n = min(n+r.Size(), MaxSize)
	}
	return n
}

// Ends returns the first and the last address that the range covers.
func (r Range) Ends() (first, last netip.Addr) { return r.first, r.last }
