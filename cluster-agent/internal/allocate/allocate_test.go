// SPDX-License-Identifier: Apache-2.0

package allocate_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/cluster-agent/internal/allocate"
	"egress-gateway.io/cluster-agent/internal/iprange"
)

func set(t *testing.T, texts ...string) iprange.Set {
	t.Helper()
	s, err := iprange.ParseSet(texts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func addrs(text string) []netip.Addr {
	var out []netip.Addr
	for _, s := range strings.Fields(text) {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func text(list []netip.Addr) string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

func TestAllocate(t *testing.T) {
	type taken struct {
		addr, tenant string
		use          allocate.Use
	}
	const v4, g4 = "192.0.2.1-192.0.2.3", "10.0.0.1-10.0.0.3"
	const v6, g6 = "2001:db8::/64", "fd00::/64"
	for _, c := range []struct {
		name            string
		egress, gateway []string
		taken           []taken
		ask             string
		count           int
		have            allocate.Grant
		want, hops      string
		reason          string
	}{
		{name: "the lowest free", egress: []string{v4}, gateway: []string{g4}, want: "192.0.2.1", hops: "10.0.0.1"},
		{name: "the lowest of several ranges, in any order", egress: []string{"192.0.2.8/30", v4}, gateway: []string{g4}, want: "192.0.2.1", hops: "10.0.0.1"},
		{name: "one of each family", egress: []string{v4, v6}, gateway: []string{g4, g6}, want: "192.0.2.1 2001:db8::1", hops: "10.0.0.1 fd00::1"},
		{name: "what others hold, reserve or rest is not free", egress: []string{v4 + ""}, gateway: []string{"10.0.0.1-10.0.0.9"},
			taken: []taken{{"192.0.2.1", "b", allocate.Held}, {"192.0.2.2", "c", allocate.Reserved}, {"10.0.0.1", "d", allocate.Resting}},
			want:  "192.0.2.3", hops: "10.0.0.2"},
		{name: "what is reserved for the tenant comes first", egress: []string{v4}, gateway: []string{g4},
			taken: []taken{{"192.0.2.3", "a", allocate.Reserved}, {"10.0.0.2", "a", allocate.Reserved}}, want: "192.0.2.3", hops: "10.0.0.2"},
		{name: "what rests after the tenant comes back", egress: []string{v4}, gateway: []string{g4},
			taken: []taken{{"192.0.2.2", "a", allocate.Resting}}, want: "192.0.2.2", hops: "10.0.0.1"},
		{name: "what rested and is somebody's now does not", egress: []string{v4}, gateway: []string{g4},
			taken: []taken{{"192.0.2.2", "a", allocate.Resting}, {"192.0.2.2", "b", allocate.Held}}, want: "192.0.2.1", hops: "10.0.0.1"},
		{name: "the one asked for", egress: []string{v4}, gateway: []string{g4}, ask: "192.0.2.2", want: "192.0.2.2", hops: "10.0.0.1"},
		{name: "several asked for", egress: []string{v4}, gateway: []string{g4}, ask: "192.0.2.3 192.0.2.1", want: "192.0.2.3 192.0.2.1", hops: "10.0.0.1"},
		{name: "one family asked for, the other free", egress: []string{v4, v6}, gateway: []string{g4, g6}, ask: "2001:db8::55", want: "192.0.2.1 2001:db8::55", hops: "10.0.0.1 fd00::1"},
		{name: "asked for its own resting one", egress: []string{v4}, gateway: []string{g4}, ask: "192.0.2.2",
			taken: []taken{{"192.0.2.2", "a", allocate.Resting}}, want: "192.0.2.2", hops: "10.0.0.1"},
		{name: "asked for somebody's", egress: []string{v4}, gateway: []string{g4}, ask: "192.0.2.2",
			taken: []taken{{"192.0.2.2", "b", allocate.Held}}, reason: allocate.ReasonAddressInUse},
		{name: "asked for one that rests", egress: []string{v4}, gateway: []string{g4}, ask: "192.0.2.2",
			taken: []taken{{"192.0.2.2", "b", allocate.Resting}}, reason: allocate.ReasonAddressQuarantined},
		{name: "asked for one outside", egress: []string{v4}, gateway: []string{g4}, ask: "192.0.2.9", reason: allocate.ReasonAddressNotInPool},
		{name: "asked for a broadcast address", egress: []string{"192.0.2.0/28"}, gateway: []string{g4}, ask: "192.0.2.15", reason: allocate.ReasonAddressNotInPool},
		{name: "asked for a family that the pool has not", egress: []string{v4}, gateway: []string{g4}, ask: "2001:db8::1", reason: allocate.ReasonAddressNotInPool},
		{name: "exhausted", egress: []string{"192.0.2.1-192.0.2.1"}, gateway: []string{g4},
			taken: []taken{{"192.0.2.1", "b", allocate.Held}}, reason: allocate.ReasonPoolExhausted},
		{name: "no next hop left", egress: []string{v4}, gateway: []string{"10.0.0.1-10.0.0.1"},
			taken: []taken{{"10.0.0.1", "b", allocate.Held}}, reason: allocate.ReasonGatewayAddressesExhausted},
		{name: "what it has stays, also outside of the pool", egress: []string{v4}, gateway: []string{g4},
			have: allocate.Grant{Egress: addrs("203.0.113.9"), Gateway: addrs("10.9.9.9")}, want: "203.0.113.9", hops: "10.9.9.9"},
		{name: "several for each tenant", egress: []string{v4, v6}, gateway: []string{g4, g6}, count: 2, want: "192.0.2.1 192.0.2.2 2001:db8::1 2001:db8::2", hops: "10.0.0.1 fd00::1"},
		{name: "several, what is set aside first, in order", egress: []string{v4}, gateway: []string{g4}, count: 2,
			taken: []taken{{"192.0.2.1", "b", allocate.Held}, {"192.0.2.3", "a", allocate.Resting}}, want: "192.0.2.2 192.0.2.3", hops: "10.0.0.1"},
		{name: "several, of which some are there", egress: []string{v4}, gateway: []string{g4}, count: 5, reason: allocate.ReasonPoolExhausted},
		{name: "several from several ranges", egress: []string{"192.0.2.1-192.0.2.1", "192.0.2.4-192.0.2.4"}, gateway: []string{g4}, count: 2, want: "192.0.2.1 192.0.2.4", hops: "10.0.0.1"},
		{name: "what it has is not made more", egress: []string{v4}, gateway: []string{g4}, count: 3,
			have: allocate.Grant{Egress: addrs("192.0.2.2"), Gateway: addrs("10.0.0.3")}, want: "192.0.2.2", hops: "10.0.0.3"},
		{name: "exact ones instead of several", egress: []string{v4}, gateway: []string{g4}, count: 3, ask: "192.0.2.2", want: "192.0.2.2", hops: "10.0.0.1"},
		{name: "another egress address, the same next hop", egress: []string{v4}, gateway: []string{g4}, ask: "192.0.2.3",
			have: allocate.Grant{Egress: addrs("192.0.2.2"), Gateway: addrs("10.0.0.3")}, want: "192.0.2.3", hops: "10.0.0.3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := allocate.NewPool("public", set(t, c.egress...), set(t, c.gateway...))
			for _, x := range c.taken {
				p.Take(netip.MustParseAddr(x.addr), allocate.Taken{Use: x.use, Tenant: x.tenant})
			}
			g, refusal := p.Allocate(allocate.Request{Tenant: "a", Egress: addrs(c.ask), Count: c.count, Have: c.have})
			if c.reason != "" {
				if refusal == nil || refusal.Reason != c.reason || !strings.Contains(refusal.Message, ";") {
					t.Fatalf("got %v, %+v; want %s and a remedy", g, refusal, c.reason)
				}
				return
			}
			if refusal != nil {
				t.Fatal(refusal)
			}
			if diff := cmp.Diff([]string{c.want, c.hops}, []string{text(g.Egress), text(g.Gateway)}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A batch in one pool never gives anything twice, and always the lowest.
func TestBatch(t *testing.T) {
	p := allocate.NewPool("public", set(t, "10.0.0.0/16", "2001:db8::/64"), set(t, "10.1.0.0/16", "fd00::/64"))
	const n = 5000
	seen := map[netip.Addr]bool{}
	random := rand.New(rand.NewPCG(1, 2))
	for range n / 2 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(random.IntN(20)), byte(random.IntN(256))})
		p.Take(a, allocate.Taken{Use: allocate.Held, Tenant: "other"})
		seen[a] = true
	}
	begin := time.Now()
	last := netip.Addr{}
	for i := range n {
		g, refusal := p.Allocate(allocate.Request{Tenant: fmt.Sprint("t", i)})
		if refusal != nil {
			t.Fatal(refusal)
		}
		for _, a := range g.All() {
			if seen[a] {
				t.Fatalf("%s was given twice", a)
			}
			seen[a] = true
		}
		if last.IsValid() && !last.Less(g.Egress[0]) {
			t.Fatalf("%s after %s", g.Egress[0], last)
		}
		last = g.Egress[0]
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("%d allocations took %s: the ranges must not be walked over each time", n, took)
	}
}

func TestSatisfies(t *testing.T) {
	for _, c := range []struct {
		have, asked string
		want        bool
	}{
		{"192.0.2.1", "", true},
		{"", "", false},
		{"192.0.2.1 2001:db8::1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1 192.0.2.2", "192.0.2.2 192.0.2.1", true},
		{"192.0.2.1 192.0.2.2", "192.0.2.2", false},
		{"192.0.2.1", "2001:db8::1", false},
	} {
		if got := allocate.Satisfies(allocate.Grant{Egress: addrs(c.have)}, addrs(c.asked)); got != c.want {
			t.Errorf("has %q, asked for %q: %t, want %t", c.have, c.asked, got, c.want)
		}
	}
}

// TestSeveralOfManyTenants: a refusal takes nothing, and no address is given
// twice or left out.
func TestSeveralOfManyTenants(t *testing.T) {
	p := allocate.NewPool("public", set(t, "192.0.2.1-192.0.2.10"), set(t, "10.0.0.1-10.0.0.9"))
	var got []string
	for i, count := range []int{3, 3, 5, 4, 1} {
		g, refusal := p.Allocate(allocate.Request{Tenant: fmt.Sprint("t", i), Count: count})
		if refusal != nil {
			got = append(got, refusal.Reason)
			continue
		}
		got = append(got, text(g.Egress))
	}
	want := []string{"192.0.2.1 192.0.2.2 192.0.2.3", "192.0.2.4 192.0.2.5 192.0.2.6", allocate.ReasonPoolExhausted,
		"192.0.2.7 192.0.2.8 192.0.2.9 192.0.2.10", allocate.ReasonPoolExhausted}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
