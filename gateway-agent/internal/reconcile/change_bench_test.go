// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// quickKernel takes no time of its own: what is measured is the loop.
type quickKernel struct {
	*fakeKernel
	applied []time.Time
}

func (k *quickKernel) Look(context.Context, bool) (Sight, error) {
	return Sight{Host: k.host, State: k.state, Same: true}, nil
}

func (k *quickKernel) Apply(_ context.Context, steps []plan.Step) ([]Failure, []plan.Step) {
	k.applied = append(k.applied, time.Now())
	for _, s := range steps {
		if err := k.apply(s); err != nil {
			return []Failure{{s, err}}, nil
		}
	}
	return nil, nil
}

// BenchmarkChange prints what one tenant more among many takes from the view on
// the bus to the first step, and to the end of the pass, and what is allocated.
func BenchmarkChange(b *testing.B) {
	const tenants = 4000
	k := &quickKernel{fakeKernel: newFakeKernel()}
	k.host.OnLink = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	k.state.Guard.Sets, k.state.Neighbours.MACs = map[string]plan.GuardSet{}, map[netip.Addr]string{}
	views := map[string]View{}
	store, err := OpenStore(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	l := NewLoop(Options{
		Gateway: "gw1", Group: "g1", Resync: time.Hour, Clock: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Store: store, Kernel: k, Flows: &fakeFlows{}, Announcer: &fakeAnnouncer{}, Audit: &fakeAudit{},
		Views: func() map[string]View { return views }, Trouble: func() []plan.Problem { return nil }, Sweep: func() {},
	})
	all := map[string]tenant.Tenant{}
	for i := range tenants {
		t := record(fmt.Sprintf("t%04d", i), 1)
		t.GatewayIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
		t.EgressIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})}
		all[t.Name] = t
	}
	generation := int64(0)
	pass := func(more []tenant.Tenant) {
		generation++
		v := view(generation, nil, node("n1", 0))
		v.Tenants, v.Serial, v.Before, v.Changed = more, uint64(generation), uint64(generation-1), []string{"t2000"}
		views["c1"] = v
		k.applied, k.steps = nil, nil
		if !l.pass(b.Context()) {
			b.Fatal(l.Snapshot().Problems)
		}
	}
	full := inOrder(all)
	all["t2000"] = tombstone(all["t2000"])
	few := inOrder(all)
	pass(few)
	pass(few)
	var first, whole []time.Duration
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	passes := 0
	for b.Loop() {
		for _, next := range [][]tenant.Tenant{full, few} {
			start := time.Now()
			pass(next)
			first, whole = append(first, k.applied[0].Sub(start)), append(whole, time.Since(start))
			passes++
			if kind := l.Snapshot().Pass.Kind; kind != PassPart {
				b.Fatalf("a pass of kind %s", kind)
			}
		}
	}
	runtime.ReadMemStats(&after)
	for name, list := range map[string][]time.Duration{"first-step": first, "pass": whole} {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds())/1000, name+"-p99-ms")
	}
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(passes)/1e6, "MB/pass")
}
