// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// fakeBucket holds what was reported last.
type fakeBucket struct {
	mu    sync.Mutex
	all   map[string][]byte
	syncs int
	// renewals are not among them.
	renewals int
	err      error
}

func (b *fakeBucket) Sync(_ context.Context, all map[string][]byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.syncs++; b.err != nil {
		return b.err
	}
	b.all = maps.Clone(all)
	return nil
}

// Renew fails unless everything was taken before.
func (b *fakeBucket) Renew(_ context.Context, key string, record []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.renewals++; b.err != nil {
		return b.err
	}
	if b.all == nil {
		return errors.New("of what?")
	}
	b.all[key] = record
	return nil
}

func (b *fakeBucket) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.syncs + b.renewals
}

func TestReporterRecords(t *testing.T) {
	b := newBench(t)
	all := many(8)
	b.show(41, all)
	b.mustPass()
	b.views["c1"] = view(42, nil)
	b.trouble = []plan.Problem{{Cluster: "c1", Node: "n1", Reason: "Odd", Message: "something"}}
	b.mustPass()
	r := &Reporter{Gateway: "gw1", Group: "g1", Version: "v1", Clock: func() time.Time { return b.now }}
	records := r.records(b.loop.Snapshot())
	if len(records) != 9 {
		t.Fatalf("%d records", len(records))
	}
	sum, err := tenant.DecodeSummary("gw1.summary", records["gw1.summary"])
	if err != nil {
		t.Fatal(err)
	}
	want := tenant.Summary{
		Schema: tenant.Schema, Gateway: "gw1", Group: "g1", Version: "v1", Addresses: b.kernel.host.Own,
		Tenants: 8, Held: 8, Applied: map[string]int64{"c1": 42}, Problems: []string{"c1/n1: Odd: something"}, Time: b.now.UTC(),
	}
	if diff := cmp.Diff(want, sum, sameValues); diff != "" {
		t.Errorf("summary (-want +got)\n%s", diff)
	}
	st, err := tenant.DecodeStatus("gw1.tenant.c1.t01", records["gw1.tenant.c1.t01"])
	if err != nil {
		t.Fatal(err)
	}
	if !st.Programmed || st.UID != "uid-t01" || st.Generation != 1 || st.Reason != ReasonHeld {
		t.Errorf("status: %+v", st)
	}
}

// TestStatusTime: the time of a status is that of its last change.
func TestStatusTime(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed())
	b.mustPass()
	first := b.now.UTC()
	b.now = b.now.Add(time.Minute)
	changed := record("red", 14)
	changed.Generation = 2
	b.show(2, with(blueAndRed(), func(m map[string]tenant.Tenant) { m["red"] = changed }))
	b.mustPass()
	st := b.loop.Snapshot().Statuses
	if got := st[Ref{"c1", "blue"}].Time; got != first {
		t.Errorf("blue: %s, want %s", got, first)
	}
	if got := st[Ref{"c1", "red"}].Time; got != b.now.UTC() {
		t.Errorf("red: %s, want %s", got, b.now)
	}
}

// TestStatusOfAFailedRemoval: while the kernel holds something of a released
// tenant, its status stays, so that nobody is given its addresses.
func TestStatusOfAFailedRemoval(t *testing.T) {
	b := newBench(t)
	both := blueAndRed()
	b.show(1, both)
	b.mustPass()
	b.flows.err = errInjected
	b.show(2, with(both, func(m map[string]tenant.Tenant) { m["red"] = tombstone(both["red"]) }))
	if _, ok := b.pass(); ok {
		t.Error("the pass counts as good")
	}
	b.want("status", []string{"false uid-red/1 RemovalFailed", "true uid-blue/1"}, []string{b.status("red"), b.status("blue")})
	b.want("removed", nil, b.audit.told(EventRemoved))
	b.start() // a restart does not forget
	b.flows.err = errInjected
	b.pass()
	b.want("status", []string{"false uid-red/1 RemovalFailed"}, []string{b.status("red")})
	b.flows.err = nil
	b.mustPass()
	b.want("removed", []string{"c1/red removed/uid-red/1"}, b.audit.told(EventRemoved))
	b.want("addresses", blueAddrs, b.kernel.addrs())
	if _, still := b.loop.Snapshot().Statuses[Ref{"c1", "red"}]; still {
		t.Error("the status of a removed tenant stays")
	}
}

func TestReporterRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket, due := &fakeBucket{}, make(chan struct{})
		snap := &Snapshot{}
		r := &Reporter{
			Gateway: "gw1", Every: 5 * time.Second, Clock: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
			Snapshot: func() *Snapshot { return snap }, Statuses: bucket,
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx, due) }()
		due <- struct{}{}
		synctest.Wait()
		if bucket.count() != 0 {
			t.Error("reported before the first pass: that would withdraw what an earlier life reported")
		}
		snap = &Snapshot{Pass: Pass{Began: time.Now()}, Addresses: []netip.Addr{netip.MustParseAddr("192.168.99.12")}}
		due <- struct{}{}
		synctest.Wait()
		if bucket.count() != 1 {
			t.Errorf("%d reports after an event, want 1", bucket.count())
		}
		bucket.mu.Lock()
		bucket.err = errors.New("no bus")
		bucket.mu.Unlock()
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if n := bucket.count(); n != 3 {
			t.Errorf("%d reports after 11 s, want 3: a failure does not end it", n)
		}
		bucket.mu.Lock()
		bucket.err = nil
		bucket.mu.Unlock()
		// After a failure everything is told, then the summary alone, until the
		// snapshot is another or the bus asks.
		for i, step := range []struct {
			do              func()
			syncs, renewals int
		}{
			{func() { time.Sleep(5 * time.Second) }, 1, 0},
			{func() { time.Sleep(10 * time.Second) }, 0, 2},
			{func() { due <- struct{}{} }, 1, 0},
			{func() { time.Sleep(5 * time.Second) }, 0, 1},
			{func() { next := *snap; snap = &next; time.Sleep(5 * time.Second) }, 1, 0},
		} {
			syncs, renewals := bucket.syncs, bucket.renewals
			step.do()
			synctest.Wait()
			if s, n := bucket.syncs-syncs, bucket.renewals-renewals; s != step.syncs || n != step.renewals {
				t.Errorf("step %d: %d reports of everything and %d of the summary, want %d and %d", i, s, n, step.syncs, step.renewals)
			}
		}
		sum, err := tenant.DecodeSummary("gw1.summary", bucket.all["gw1.summary"])
		if age := time.Since(sum.Time); err != nil || age >= 5*time.Second {
			t.Errorf("the summary is %s old: %v", age, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
