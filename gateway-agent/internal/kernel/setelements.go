// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// partKind is what a part of an element is.
type partKind uint8

const (
	partLink partKind = iota // a name, filled up with zeros
	partMark                 // a number of the machine
	partIPv4
	partIPv6
)

// size is how many bytes it takes, always a multiple of the four to which the
// kernel fills parts up.
func (p partKind) size() int {
	switch p {
	case partIPv6:
		return 16
	case partLink:
		return unix.IFNAMSIZ
	}
	return 4
}

// setLayout is what the elements of a set are made of.
type setLayout struct {
	key, value []partKind
	intervals  bool
}

// shape are the flags that such a set has in the kernel.
func (l setLayout) shape() (flags uint32) {
	if l.intervals {
		flags |= unix.NFT_SET_INTERVAL
	}
	if len(l.value) > 0 {
		flags |= unix.NFT_SET_MAP
	}
	return flags
}

// parseLayout reads the declaration of a set that a plan makes elements for
// (plan.GuardSetTypes).
func parseLayout(declaration string) (l setLayout, err error) {
	for property := range strings.SplitSeq(strings.TrimSuffix(declaration, ";"), "; ") {
		word, rest, _ := strings.Cut(property, " ")
		switch {
		case word == "type":
			key, value, mapped := strings.Cut(rest, " : ")
			if l.key, err = parseParts(key); err == nil && mapped {
				l.value, err = parseParts(value)
			}
		case property == "flags interval":
			l.intervals = true
		default:
			err = fmt.Errorf("unknown property %q", property)
		}
		if err != nil {
			return l, fmt.Errorf("set declared as %q: %w", declaration, err)
		}
	}
	if l.intervals && (len(l.key) != 1 || l.value != nil) {
		return l, fmt.Errorf("set declared as %q: intervals of what is not one address", declaration)
	}
	return l, nil
}

func parseParts(types string) (out []partKind, err error) {
	kinds := map[string]partKind{"ifname": partLink, "mark": partMark, "ipv4_addr": partIPv4, "ipv6_addr": partIPv6}
	for t := range strings.SplitSeq(types, " . ") {
		kind, known := kinds[t]
		if !known {
			return nil, fmt.Errorf("unknown type %q", t)
		}
		out = append(out, kind)
	}
	return out, nil
}

// rawElement is an element as the kernel tells it.
type rawElement struct {
	key, value []byte
	end        bool // not an element, but the first key behind an interval
}

// parseElement reads the attributes of an element. ok is false if it has more to
// it than the elements that plans make: a time after which it goes, an
// expression that decides whether it counts, anything that no key stands for.
// A comment does no harm.
func parseElement(element []byte) (e rawElement, ok bool) {
	for list := (attributes{element}); ; {
		kind, value, more := list.next()
		if !more {
			return e, !list.malformed() && e.key != nil
		}
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.key = find(value, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_DATA:
			if e.value = find(value, unix.NFTA_DATA_VALUE); e.value == nil {
				return e, false
			}
		case unix.NFTA_SET_ELEM_FLAGS:
			if len(value) != 4 || binary.BigEndian.Uint32(value)&^unix.NFT_SET_ELEM_INTERVAL_END != 0 {
				return e, false
			}
			e.end = binary.BigEndian.Uint32(value) != 0
		case unix.NFTA_SET_ELEM_USERDATA, unix.NFTA_SET_ELEM_PAD:
		default:
			return e, false
		}
	}
}

// appendElement writes an element as plans do: parts joined by " . ", and in a map
// " : " and a value. ok is false if it is none of this layout.
func (l setLayout) appendElement(to []byte, e rawElement) (out []byte, ok bool) {
	if to, ok = appendParts(to, l.key, e.key); !ok {
		return to, false
	}
	if len(l.value) == 0 {
		return to, e.value == nil
	}
	return appendParts(append(to, " : "...), l.value, e.value)
}

func appendParts(to []byte, kinds []partKind, b []byte) (out []byte, ok bool) {
	for i, kind := range kinds {
		if len(b) < kind.size() {
			return to, false
		}
		if i > 0 {
			to = append(to, " . "...)
		}
		if to, ok = appendPart(to, kind, b[:kind.size()]); !ok {
			return to, false
		}
		b = b[kind.size():]
	}
	return to, len(b) == 0
}

// appendPart is the opposite of encodePart.
func appendPart(to []byte, kind partKind, b []byte) (out []byte, ok bool) {
	switch kind {
	case partMark:
		return strconv.AppendUint(append(to, "0x"...), uint64(binary.NativeEndian.Uint32(b)), 16), true
	case partIPv4:
		return netip.AddrFrom4([4]byte(b)).AppendTo(to), true
	case partIPv6:
		return netip.AddrFrom16([16]byte(b)).AppendTo(to), true
	default:
		name, zeros, _ := bytes.Cut(b, []byte{0})
		return append(to, name...), linkName(name) && len(bytes.Trim(zeros, "\x00")) == 0
	}
}

// linkName tells the names that can not be taken for marks or addresses.
func linkName(name []byte) bool {
	return len(name) > 0 && len(name) < unix.IFNAMSIZ && (name[0] < '0' || name[0] > '9') && !bytes.ContainsAny(name, " /:\n")
}

// interval is a key at which one begins, or the first one behind it.
type interval struct {
	at  netip.Addr
	end bool
}

// prefixes writes the intervals that the kernel holds as plans do: as prefixes.
// What is none comes out as a range.
func prefixes(bounds []interval) (out []string) {
	slices.SortFunc(bounds, func(a, b interval) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		switch { // one ends before the next begins
		case a.end == b.end:
			return 0
		case a.end:
			return -1
		}
		return 1
	})
	var from netip.Addr
	for _, b := range bounds {
		if from.IsValid() {
			out = append(out, between(from, b.at.Prev()))
		}
		if from = b.at; b.end {
			from = netip.Addr{}
		}
	}
	if from.IsValid() { // to the last address there is
		out = append(out, between(from, last(from)))
	}
	return out
}

// last is the highest address of a family.
func last(of netip.Addr) netip.Addr {
	b := of.AsSlice()
	for i := range b {
		b[i] = 0xff
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}

// between writes the addresses from a to b.
func between(a, b netip.Addr) string {
	for bits := range a.BitLen() + 1 {
		p := netip.PrefixFrom(a, bits)
		if p.Masked().Addr() != a {
			continue
		}
		if lastOf(p) == b {
			return p.String()
		}
	}
	return a.String() + "-" + b.String()
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	out, _ := netip.AddrFromSlice(b)
	return out
}
