// SPDX-License-Identifier: Apache-2.0

package flows_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
)

func TestUsage(t *testing.T) {
	n, f := table(t)
	n.Run("conntrack -I -p udp -s 10.128.0.10 -d 203.0.113.11 --sport 5 --dport 53 -t 600 -m 0x100000 -n 192.168.55.113")
	n.Run("conntrack -I -p udp -s fd01::1 -d 2001:db8::1 --sport 5 --dport 443 -t 600 -m 0x400000 -n fd00:55::1")
	got, err := look(context.Background(), n, f, 3)
	if err != nil {
		t.Fatal(err)
	}
	target := func(to, egress string) flows.Target {
		return flows.Target{Protocol: 17, Destination: netip.MustParseAddrPort(to), Egress: netip.MustParseAddr(egress)}
	}
	shared := target("203.0.113.10:53", "192.168.55.113") // by blue and a former holder
	red := target("203.0.113.10:53", "192.168.55.114")
	six := target("[2001:db8::1]:443", "fd00:55::1")
	want := flows.Usage{
		Entries: 20,
		Marks: map[uint32]flows.MarkUse{
			0x100000: {Connections: 4, Busiest: shared, Used: 6}, 0x200000: {Connections: 3, Busiest: red, Used: 3},
			0x300000: {Connections: 3, Busiest: shared, Used: 6}, 0x400000: {Connections: 1, Busiest: six, Used: 1},
		},
		Full: map[flows.Target]int{shared: 6, red: 3},
	}
	// Which of two marks that share a target is read last is the kernel's choice.
	last := max(got.Marks[0x100000].Used, got.Marks[0x300000].Used)
	if last != 6 {
		t.Errorf("an address that two marks share: %+v", got.Marks)
	}
	ignoreShared := cmpopts.IgnoreMapEntries(func(mark uint32, _ flows.MarkUse) bool { return mark == 0x100000 || mark == 0x300000 })
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), ignoreShared); d != "" {
		t.Error(d)
	}
	lost, err := f.Lost(context.Background())
	if err != nil || lost != (flows.Lost{}) {
		t.Errorf("lost: %+v, %v", lost, err)
	}
}

func look(ctx context.Context, n *nettest.Net, f *flows.Flows, full int) (u flows.Usage, err error) {
	n.Do(func() { u, err = f.Usage(ctx, mask, full) })
	return u, err
}

func TestUsageCancelled(t *testing.T) {
	n, f := table(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := look(ctx, n, f, 1); err == nil {
		t.Error("a cancelled look should fail")
	}
	// What was left of it does not mix with the next one.
	got, err := look(context.Background(), n, f, 1)
	if err != nil || got.Entries != 18 {
		t.Errorf("%d entries, %v", got.Entries, err)
	}
}
