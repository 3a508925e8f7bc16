// SPDX-License-Identifier: Apache-2.0

package iprange_test

import (
	"net/netip"
	"testing"

	"egress-gateway.io/cluster-agent/internal/iprange"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, text string
		low, high  string // empty: refused
		size       int64
	}{
		{"a subnet without its network and broadcast address", "192.0.2.0/28", "192.0.2.1", "192.0.2.14", 14},
		{"a subnet of four", "192.0.2.0/30", "192.0.2.1", "192.0.2.2", 2},
		{"a point-to-point subnet is used whole", "192.0.2.0/31", "192.0.2.0", "192.0.2.1", 2},
		{"one address", "192.0.2.7/32", "192.0.2.7", "192.0.2.7", 1},
		{"both ends are included", "192.0.2.10-192.0.2.12", "192.0.2.10", "192.0.2.12", 3},
		{"IPv6 without the router's anycast address", "2001:db8::/126", "2001:db8::1", "2001:db8::3", 3},
		{"a huge subnet has a bounded size", "2001:db8::/64", "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", iprange.MaxSize},
		{"across the lower half of an IPv6 address", "2001:db8:0:0:ffff:ffff:ffff:ffff-2001:db8:0:1::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8:0:1::1", 3},
		{"host bits", "192.0.2.1/28", "", "", 0},
		{"reversed", "192.0.2.12-192.0.2.10", "", "", 0},
		{"mixed families", "192.0.2.12-2001:db8::1", "", "", 0},
		{"no range", "192.0.2.12", "", "", 0},
		{"three parts", "192.0.2.1-192.0.2.2-192.0.2.3", "", "", 0},
		{"multicast", "224.0.0.0/24", "", "", 0},
		{"loopback", "127.0.0.1-127.0.0.9", "", "", 0},
		{"IPv4 in IPv6 form", "::ffff:192.0.2.1-::ffff:192.0.2.9", "", "", 0},
		{"a zone", "fe80::1%eth0-fe80::2%eth0", "", "", 0},
		{"nothing", "", "", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := iprange.Parse(c.text)
			if (err != nil) != (c.low == "") {
				t.Fatalf("Parse(%q): %v", c.text, err)
			}
			if err != nil {
				return
			}
			if r.Low().String() != c.low || r.High().String() != c.high || r.Size() != c.size {
				t.Errorf("Parse(%q) = %s to %s, %d; want %s to %s, %d", c.text, r.Low(), r.High(), r.Size(), c.low, c.high, c.size)
			}
		})
	}
}

func TestSetRefusesOverlaps(t *testing.T) {
	for _, texts := range [][]string{
		{"192.0.2.0/28", "192.0.2.15-192.0.2.20"}, // the broadcast address counts
		{"192.0.2.1-192.0.2.9", "192.0.2.5-192.0.2.6"},
		{"2001:db8::/64", "2001:db8::5-2001:db8::6"},
	} {
		if set, err := iprange.ParseSet(texts); err == nil || len(set) != 1 {
			t.Errorf("ParseSet(%v) = %v, %v; want the first and an error", texts, set, err)
		}
	}
	if _, err := iprange.ParseSet([]string{"192.0.2.0/28", "192.0.2.16/28", "2001:db8::/64"}); err != nil {
		t.Errorf("neighbours: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"192.0.2.0/28", "192.0.2.1-192.0.2.3", "2001:db8::/64", "::/0", "-", "/", "1.2.3.4-::1", "::ffff:1.2.3.4/128"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := iprange.Parse(s)
		if err != nil {
			return
		}
		first, last := r.Ends()
		if r.String() != s || r.Size() < 1 || r.Low().Less(first) || last.Less(r.High()) || r.High().Less(r.Low()) {
			t.Errorf("Parse(%q): %s..%s usable %s..%s, size %d", s, first, last, r.Low(), r.High(), r.Size())
		}
		for _, a := range []netip.Addr{r.Low(), r.High()} {
			if !r.Covers(a) || !r.Usable(a) {
				t.Errorf("Parse(%q) does not cover its end %s", s, a)
			}
		}
		if !r.Overlaps(r) {
			t.Errorf("Parse(%q) does not overlap itself", s)
		}
	})
}
