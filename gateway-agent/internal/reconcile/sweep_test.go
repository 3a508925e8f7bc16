// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/shared/tenant"
)

const (
	pods1  = "untranslated [10.128.0.0/23]"
	pods12 = "untranslated [10.128.0.0/23 10.128.2.0/23]"
	podAll = "untranslated [10.128.0.0/14 10.128.0.0/23 10.128.2.0/23]"
)

// sweepBench runs a sweeper in a bubble of its own time.
type sweepBench struct {
	flows    *fakeFlows
	audit    *fakeAudit
	resolved chan Resolved
	all      chan struct{}
}

func startSweeper(t *testing.T) *sweepBench {
	mem := remember(1, many(2), node("n1", 0), node("n2", 1))
	c := mem.Clusters["c1"]
	c.Network = &tenant.Network{Schema: tenant.Schema, Cluster: "c1", PodNetworks: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")}}
	mem.Clusters["c1"] = c
	b := &sweepBench{flows: &fakeFlows{}, audit: &fakeAudit{}, resolved: make(chan Resolved), all: make(chan struct{})}
	s := Sweeper{
		Flows: b.flows, Audit: b.audit, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Snapshot: func() *Snapshot { return &Snapshot{Memory: mem} },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx, b.resolved, b.all, time.Hour) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

// after lets time pass and returns the sweeps so far.
func (b *sweepBench) after(d time.Duration) []string {
	time.Sleep(d) // the bubble's time
	synctest.Wait()
	b.flows.mu.Lock()
	defer b.flows.mu.Unlock()
	return slices.Clone(b.flows.calls)
}

func resolvedBy(node, target int) Resolved {
	return Resolved{Node: netip.AddrFrom4([4]byte{192, 168, 99, byte(node)}), Target: netip.AddrFrom4([4]byte{192, 168, 99, byte(target)})}
}

func TestSweeper(t *testing.T) {
	tests := []struct {
		name string
		do   func(b *sweepBench)
		soon []string // after 60 ms
		late []string // after a minute
	}{
		{"one node", func(b *sweepBench) { b.resolved <- resolvedBy(20, 101) }, []string{pods1}, []string{pods1, pods1}},
		{"two nodes, many tenants: one sweep", func(b *sweepBench) {
			for range 10 {
				b.resolved <- resolvedBy(20, 101)
				b.resolved <- resolvedBy(21, 102)
			}
		}, []string{pods12}, []string{pods12, pods12}},
		{"not a gateway IP", func(b *sweepBench) { b.resolved <- resolvedBy(20, 12) }, nil, nil},
		{"not a node", func(b *sweepBench) { b.resolved <- resolvedBy(99, 101) }, nil, nil},
		{"everything", func(b *sweepBench) { b.all <- struct{}{} }, []string{podAll}, []string{podAll, podAll}},
		{"the watch ends", func(b *sweepBench) { close(b.resolved); b.all <- struct{}{} }, []string{podAll}, []string{podAll, podAll}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startSweeper(t)
				tt.do(b)
				if diff := cmp.Diff(tt.soon, b.after(60*time.Millisecond)); diff != "" {
					t.Errorf("soon (-want +got)\n%s", diff)
				}
				if diff := cmp.Diff(tt.late, b.after(time.Minute)); diff != "" {
					t.Errorf("late (-want +got)\n%s", diff)
				}
				if got := len(b.audit.told(EventFlush)); got != len(tt.late) {
					t.Errorf("told %d flushes, want %d", got, len(tt.late))
				}
			})
		})
	}
}

// TestSweeperPace: a storm of events costs one sweep in a second, and the
// periodic sweep needs no event at all.
func TestSweeperPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startSweeper(t)
		for range 1000 {
			b.resolved <- resolvedBy(20, 101)
			b.after(10 * time.Millisecond)
		}
		if n := len(b.after(0)); n < 9 || n > 12 {
			t.Errorf("%d sweeps in ten seconds of storm", n)
		}
		before := len(b.after(time.Minute))
		if n := len(b.after(time.Hour)); n != before+2 {
			t.Errorf("%d sweeps in an hour, want the periodic one and, since that found something, its second", n-before)
		}
		b.flows.none(true)
		before = len(b.after(0))
		if n := len(b.after(time.Hour)); n != before+1 {
			t.Errorf("%d sweeps in an hour in which there is nothing to find, want the periodic one", n-before)
		}
		before = len(b.after(0))
		b.resolved <- resolvedBy(20, 101)
		if n := len(b.after(time.Minute)); n != before+2 {
			t.Errorf("%d sweeps after an event, want two: something may have been under way", n-before)
		}
	})
}

// Over IPv6 a node may ask from a link-local address, which no record holds.
func TestPodsBehindIPv6(t *testing.T) {
	four, six1, six2 := netip.MustParsePrefix("10.128.0.0/23"), netip.MustParsePrefix("fd01:0:0:1::/64"), netip.MustParsePrefix("fd01:0:0:2::/64")
	hop := netip.MustParseAddr("fd00:99::13")
	s := Sweeper{Snapshot: func() *Snapshot {
		return &Snapshot{Memory: Memory{Clusters: map[string]Cluster{"lab": {
			Tenants: map[string]Entry{"blue": {Record: tenant.Tenant{GatewayIPs: []netip.Addr{hop}}}},
			Nodes: map[string]tenant.Node{
				"node1": {Subnets: []netip.Prefix{four, six1}, Addresses: []netip.Addr{netip.MustParseAddr("fd00:99::21")}},
				"node2": {Subnets: []netip.Prefix{six2}, Addresses: []netip.Addr{netip.MustParseAddr("fd00:99::22")}},
			},
		}}}}
	}}
	for asks, want := range map[string][]netip.Prefix{
		"fd00:99::21": {six1},
		"fd00:99::99": nil,
		"fe80::1":     {six1, six2},
	} {
		got := s.podsBehind(Resolved{Node: netip.MustParseAddr(asks), Target: hop})
		slices.SortFunc(got, netip.Prefix.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("%s asks: pods %v, want %v", asks, got, want)
		}
	}
	if got := s.podsBehind(Resolved{Node: netip.MustParseAddr("fe80::1"), Target: netip.MustParseAddr("fd00:99::12")}); len(got) > 0 {
		t.Errorf("who asks for another address than a gateway IP: %v", got)
	}
}
