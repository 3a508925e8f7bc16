// SPDX-License-Identifier: Apache-2.0

package flows_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
)

const mask = 0xfff00000

// table is a connection table filled by hand.
func table(t *testing.T) (*nettest.Net, *flows.Flows) {
	t.Helper()
	n := nettest.New(t)
	n.Run("ip address add 10.128.0.1/32 dev lo")
	entry := func(src, dst, reply string, mark uint32, port int) {
		nat := ""
		if reply != src {
			nat = "-n " + reply
		}
		n.Run(fmt.Sprintf("conntrack -I -p udp -s %s -d %s --sport %d --dport 53 -t 600 -m %#x %s", src, dst, port, mark, nat))
	}
	for port := 1000; port < 1003; port++ {
		entry("10.128.0.10", "203.0.113.10", "192.168.55.113", 0x100000, port) // blue
		entry("10.128.0.11", "203.0.113.10", "192.168.55.114", 0x200007, port) // red, with bits that are not ours
		entry("10.128.0.12", "203.0.113.10", "192.168.55.113", 0x300000, port) // a former holder of blue's address
		entry("10.128.0.13", "203.0.113.10", "10.128.0.13", 0, port)           // untranslated
		entry("10.128.0.13", "10.128.0.1", "10.128.0.13", 0, port)             // to this machine
		entry("192.168.99.50", "203.0.113.10", "192.168.99.50", 0, port)       // somebody else's
	}
	var f *flows.Flows
	var err error
	n.Do(func() { f, err = flows.Open() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return n, f
}

// left counts the entries by source and destination.
func left(n *nettest.Net) map[string]int {
	out := make(map[string]int)
	for line := range strings.Lines(n.Run("conntrack -L 2>/dev/null")) {
		words := strings.Fields(line)
		out[strings.TrimPrefix(words[3], "src=")+">"+strings.TrimPrefix(words[4], "dst=")]++
	}
	return out
}

func TestDelete(t *testing.T) {
	blue := netip.MustParseAddr("192.168.55.113")
	ctx := context.Background()
	all := map[string]int{
		"10.128.0.10>203.0.113.10": 3, "10.128.0.11>203.0.113.10": 3, "10.128.0.12>203.0.113.10": 3,
		"10.128.0.13>203.0.113.10": 3, "10.128.0.13>10.128.0.1": 3, "192.168.99.50>203.0.113.10": 3,
	}
	for name, c := range map[string]struct {
		delete func(f *flows.Flows) (int, error)
		count  int
		gone   []string
	}{
		"egress IP": {func(f *flows.Flows) (int, error) {
			return one(ctx, f, flows.Match{Egress: blue, KeepMark: 0, Mask: mask})
		}, 6,
			[]string{"10.128.0.10>203.0.113.10", "10.128.0.12>203.0.113.10"}},
		"egress IP but its holder's": {func(f *flows.Flows) (int, error) {
			return one(ctx, f, flows.Match{Egress: blue, KeepMark: 0x100000, Mask: mask})
		}, 3,
			[]string{"10.128.0.12>203.0.113.10"}},
		"mark": {func(f *flows.Flows) (int, error) { return one(ctx, f, flows.Match{Mark: 0x200000, Mask: mask}) }, 3,
			[]string{"10.128.0.11>203.0.113.10"}},
		"untranslated": {func(f *flows.Flows) (int, error) {
			return f.DeleteUntranslated(ctx, []netip.Prefix{netip.MustParsePrefix("10.128.0.0/23")})
		}, 3, []string{"10.128.0.13>203.0.113.10"}},
		"several": {func(f *flows.Flows) (int, error) {
			n, err := f.Delete(ctx, []flows.Match{{Egress: blue, KeepMark: 0x100000, Mask: mask}, {Mark: 0x200000, Mask: mask}, {Mark: 0x500000, Mask: mask}})
			if d := cmp.Diff([]int{3, 3, 0}, n); d != "" {
				t.Error(d)
			}
			return n[0] + n[1], err
		}, 6, []string{"10.128.0.11>203.0.113.10", "10.128.0.12>203.0.113.10"}},
		"nothing": {func(f *flows.Flows) (int, error) { return one(ctx, f, flows.Match{Mark: 0x900000, Mask: mask}) }, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n, f := table(t)
			// Twice: the second time there is nothing to do.
			for _, want := range []int{c.count, 0} {
				var got int
				var err error
				n.Do(func() { got, err = c.delete(f) })
				if err != nil || got != want {
					t.Errorf("deleted %d, %v; want %d", got, err, want)
				}
				if name == "several" {
					break
				}
			}
			want := map[string]int{}
			for k, v := range all {
				want[k] = v
			}
			for _, k := range c.gone {
				delete(want, k)
			}
			if d := cmp.Diff(want, left(n)); d != "" {
				t.Error(d)
			}
			if got, err := f.Count(ctx); err != nil || got != len(want)*3 {
				t.Errorf("count %d, %v", got, err)
			}
		})
	}
}

// TestVanishing deletes while somebody else does, too.
func TestVanishing(t *testing.T) {
	n, f := table(t)
	for i := range 2000 {
		if i%200 == 0 {
			n.Run(fmt.Sprintf("for p in $(seq %d %d); do echo -I -p udp -s 10.128.0.10 -d 203.0.113.10 --sport $p --dport 99 -t 600 -m 0x100000 -n 192.168.55.113; done > /tmp/egw-flows-$$; conntrack -R /tmp/egw-flows-$$ >/dev/null 2>&1; rm /tmp/egw-flows-$$", 2000+i, 2199+i))
		}
	}
	if c, _ := f.Count(context.Background()); c < 2000 {
		t.Fatalf("%d entries only", c)
	}
	done := make(chan struct{})
	go func() { defer close(done); _, _ = n.Try("conntrack -F") }()
	if _, err := one(context.Background(), f, flows.Match{Mark: 0x100000, Mask: mask}); err != nil {
		t.Error(err)
	}
	<-done
}

func one(ctx context.Context, f *flows.Flows, m flows.Match) (int, error) {
	n, err := f.Delete(ctx, []flows.Match{m})
	return n[0], err
}

// TestDeleteIPv6: what holds for IPv4 holds for IPv6, and a mark finds both.
func TestDeleteIPv6(t *testing.T) {
	ctx := context.Background()
	egress, pods := netip.MustParseAddr("fd00:55::113"), []netip.Prefix{netip.MustParsePrefix("fd01::/64")}
	for name, c := range map[string]struct {
		delete func(f *flows.Flows) (int, error)
		count  int
		gone   []string
	}{
		"egress IP but its holder's": {func(f *flows.Flows) (int, error) {
			return one(ctx, f, flows.Match{Egress: egress, KeepMark: 0x100000, Mask: mask})
		}, 1, []string{"fd01::12>2001:db8::10"}},
		"mark": {func(f *flows.Flows) (int, error) { return one(ctx, f, flows.Match{Mark: 0x100000, Mask: mask}) }, 4,
			[]string{"10.128.0.10>203.0.113.10", "fd01::10>2001:db8::10"}},
		"untranslated": {func(f *flows.Flows) (int, error) { return f.DeleteUntranslated(ctx, pods) }, 1, []string{"fd01::13>2001:db8::10"}},
	} {
		t.Run(name, func(t *testing.T) {
			n, f := table(t)
			n.Run(`ip address add fd01::1/128 dev lo nodad
				conntrack -I -p udp -s fd01::10 -d 2001:db8::10 --sport 1000 --dport 53 -t 600 -m 0x100000 -n fd00:55::113
				conntrack -I -p udp -s fd01::12 -d 2001:db8::10 --sport 1000 --dport 53 -t 600 -m 0x300000 -n fd00:55::113
				conntrack -I -p udp -s fd01::13 -d 2001:db8::10 --sport 1000 --dport 53 -t 600
				conntrack -I -p udp -s fd01::13 -d fd01::1 --sport 1000 --dport 53 -t 600`)
			want := left(n)
			for _, gone := range c.gone {
				if want[gone] == 0 {
					t.Fatalf("the table lacks %s: %v", gone, want)
				}
				delete(want, gone)
			}
			var got int
			var err error
			n.Do(func() { got, err = c.delete(f) })
			if err != nil || got != c.count {
				t.Errorf("deleted %d, %v; want %d", got, err, c.count)
			}
			if d := cmp.Diff(want, left(n)); d != "" {
				t.Error(d)
			}
		})
	}
}
