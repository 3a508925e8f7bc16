// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"egress-gateway.io/shared/tenant"
)

func syncNow(t testing.TB, w *Writer, s State) SyncResult {
	t.Helper()
	res, err := w.Sync(within(t), s)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// sees waits until the follower has confirmed generation gen of a cluster.
func sees(t testing.TB, f *Follower, cluster string, gen int64) View {
	t.Helper()
	var v View
	eventually(t, "the follower to confirm", func() bool {
		v = f.Views()[cluster]
		return v.Ready.Generation == gen
	})
	return v
}

func problem(list []Problem, part string) bool {
	for _, p := range list {
		if strings.Contains(p.Key+" "+p.Err.Error(), part) {
			return true
		}
	}
	return false
}

func TestWriterToFollower(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))

	s := aState("c1", 3)
	res := syncNow(t, w, s)
	if res.Written != 5 || res.Released != 0 || res.Purged != 0 {
		t.Fatalf("first sync: %+v", res)
	}
	v := sees(t, f, "c1", res.Generation)
	if diff := cmp.Diff(s, State{v.Tenants, v.Nodes, v.Network}, cmp.Comparer(func(a, b interface{ String() string }) bool { return a.String() == b.String() })); diff != "" {
		t.Fatal(diff)
	}

	again := syncNow(t, w, s)
	if again.Changes() != 0 || again.Generation != res.Generation {
		t.Fatalf("a second sync changed something: %+v", again)
	}

	s.Tenants = s.Tenants[:2]
	s.Tenants[1] = aTenant("c1", 1, 2)
	s.Nodes = nil
	res = syncNow(t, w, s)
	if res.Written != 1 || res.Released != 1 || res.Purged != 1 {
		t.Fatalf("third sync: %+v", res)
	}
	v = sees(t, f, "c1", res.Generation)
	if diff := cmp.Diff(map[string]int64{"ns-0": 1, "ns-1": 2}, live(v)); diff != "" || len(v.Nodes) != 0 {
		t.Fatal(diff, v.Nodes)
	}
	if len(v.Tenants) != 3 || !v.Tenants[2].Released || v.Tenants[2].UID != "uid-2" || v.Tenants[2].Generation != 2 {
		t.Fatalf("no tombstone: %+v", v.Tenants)
	}
	if res := syncNow(t, w, s); res.Changes() != 0 {
		t.Fatalf("the tombstone was written again: %+v", res)
	}

	// A tenant that comes back replaces its tombstone.
	s.Tenants = append(s.Tenants, aTenant("c1", 2, 7))
	res = syncNow(t, w, s)
	if got := live(sees(t, f, "c1", res.Generation)); got["ns-2"] != 7 {
		t.Fatal(got)
	}
}

func TestTombstonesGoAfterADay(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	now := time.Now()
	w := startWriter(t, srv.connect("ca"), "c1", func(o *WriterOptions) { o.Clock = func() time.Time { return now } })
	syncNow(t, w, aState("c1", 2))
	if res := syncNow(t, w, aState("c1", 1)); res.Released != 1 {
		t.Fatal(res)
	}
	now = now.Add(23 * time.Hour)
	if res := syncNow(t, w, aState("c1", 1)); res.Changes() != 0 {
		t.Fatal(res)
	}
	now = now.Add(2 * time.Hour)
	if res := syncNow(t, w, aState("c1", 1)); res.Purged != 1 {
		t.Fatal(res)
	}
	if res := syncNow(t, w, aState("c1", 1)); res.Changes() != 0 {
		t.Fatal(res)
	}
	f := startFollower(t, srv.connect("gw1"))
	eventually(t, "a view", func() bool { return len(f.Views()["c1"].Tenants) == 1 })
}

func TestClustersDoNotMix(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w1, w2 := startWriter(t, srv.connect("ca1"), "c1"), startWriter(t, srv.connect("ca2"), "c2")
	f := startFollower(t, srv.connect("gw1"))
	r1, r2 := syncNow(t, w1, aState("c1", 3)), syncNow(t, w2, aState("c2", 5))
	sees(t, f, "c1", r1.Generation)
	sees(t, f, "c2", r2.Generation)
	if res := syncNow(t, w1, State{}); res.Released != 3 || res.Purged != 2 {
		t.Fatal(res)
	}
	if res := syncNow(t, w2, aState("c2", 5)); res.Changes() != 0 {
		t.Fatalf("cluster c1's writer touched c2: %+v", res)
	}
	if _, err := w1.Sync(within(t), aState("c2", 1)); err == nil || !strings.Contains(err.Error(), "want cluster c1") {
		t.Fatalf("records of another cluster: %v", err)
	}
}

func TestSyncRefusesInvalidRecords(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	s := aState("c1", 2)
	s.Tenants[0].EgressIPs = nil
	if _, err := w.Sync(within(t), s); err == nil || !strings.Contains(err.Error(), "c1.tenant.ns-0") {
		t.Fatal(err)
	}
	s = aState("c1", 2)
	s.Tenants[1] = s.Tenants[0]
	if _, err := w.Sync(within(t), s); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Fatal(err)
	}
}

// A writer that restarts finds what it wrote, sweeps what is stale, and goes on
// from the generation that it finds.
func TestWriterRestart(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	future := time.Now().Add(time.Hour)
	first := startWriter(t, srv.connect("ca"), "c1", func(o *WriterOptions) { o.Clock = func() time.Time { return future } })
	before := syncNow(t, first, aState("c1", 4))
	second := startWriter(t, srv.connect("cb"), "c1") // its clock is an hour behind
	if res := syncNow(t, second, aState("c1", 4)); res.Changes() != 0 || res.Generation != before.Generation {
		t.Fatalf("nothing had changed: %+v", res)
	}
	res := syncNow(t, second, aState("c1", 3))
	if res.Released != 1 || res.Generation != before.Generation+1 {
		t.Fatalf("%+v after %+v", res, before)
	}
}

// Nothing is applied before the Ready record that vouches for it.
func TestHalfABatchIsNotApplied(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	res := syncNow(t, w, aState("c1", 2))
	sees(t, f, "c1", res.Generation)
	kv := must(srv.raw().KeyValue(within(t), StateBucket))
	changed := aTenant("c1", 1, 9)
	must(kv.Put(within(t), "c1.tenant.ns-1", tenant.Encode(changed)))
	must(kv.Put(within(t), "c1.tenant.ns-9", tenant.Encode(aTenant("c1", 9, 1))))
	eventually(t, "the mismatch to be reported", func() bool { return problem(f.Problems(), "waiting for the rest") })
	if diff := cmp.Diff(map[string]int64{"ns-0": 1, "ns-1": 1}, live(f.Views()["c1"])); diff != "" {
		t.Fatal(diff)
	}
	// The writer notices that somebody else wrote, and puts it right.
	eventually(t, "the writer to ask for a sync", func() bool { return received(w.Changed()) })
	eventually(t, "the writer to have seen both", func() bool { return syncNow(t, w, aState("c1", 2)).Generation > res.Generation })
	eventually(t, "the mismatch to be over", func() bool { return !problem(f.Problems(), "waiting for the rest") })
	if diff := cmp.Diff(map[string]int64{"ns-0": 1, "ns-1": 1}, live(f.Views()["c1"])); diff != "" {
		t.Fatal(diff)
	}
}

// A key that was deleted behind the writer's back is no order to remove.
func TestDeletedKeyIsNoRemoval(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	sees(t, f, "c1", syncNow(t, w, aState("c1", 5)).Generation)
	kv := must(srv.raw().KeyValue(within(t), StateBucket))
	if err := kv.Delete(within(t), "c1.tenant.ns-3"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mismatch to be reported", func() bool { return problem(f.Problems(), "waiting for the rest") })
	if got := live(f.Views()["c1"]); len(got) != 5 {
		t.Fatal(got)
	}
	if err := kv.Delete(within(t), "c1.meta.ready"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lack of Ready to be reported", func() bool { return problem(f.Problems(), "without a Ready record") })
	eventually(t, "all to be put right", func() bool {
		res := syncNow(t, w, aState("c1", 5))
		return f.Views()["c1"].Ready.Generation == res.Generation && len(f.Problems()) == 0
	})
}

func TestOlderGenerationIsRefused(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	res := syncNow(t, w, aState("c1", 2))
	conn := srv.connect("gw1")
	newer := View{Ready: tenant.Ready{Generation: res.Generation + 1000}, Tenants: aState("c1", 7).Tenants}
	f := NewFollower(conn, FollowerOptions{Log: quiet(), Initial: map[string]View{"c1": newer}})
	run(t, f.Run)
	eventually(t, "the refusal to be reported", func() bool { return problem(f.Problems(), "went back") })
	if got := live(f.Views()["c1"]); len(got) != 7 {
		t.Fatal(got)
	}
}

// Garbage in a record that Ready vouches for blocks nothing, and removes nothing.
func TestGarbage(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	sees(t, f, "c1", syncNow(t, w, aState("c1", 3)).Generation)
	kv := must(srv.raw().KeyValue(within(t), StateBucket))
	for _, key := range []string{"garbage", "c1.tenant.Not_A_Name", "c1.what.is-it", "UPPER.tenant.x"} {
		must(kv.PutString(within(t), key, "\x00\xff"))
	}
	vouch(t, kv, "c1", func(values map[string][]byte) {
		values["c1.tenant.ns-1"] = []byte(`{"schema":99}`)
		values["c1.tenant.new"] = []byte("garbage")
		values["c1.tenant.ns-2"] = tenant.Encode(aTenant("c1", 2, 5))
	})
	eventually(t, "the good record to be applied", func() bool { return live(f.Views()["c1"])["ns-2"] == 5 })
	v := f.Views()["c1"]
	if diff := cmp.Diff(map[string]int64{"ns-0": 1, "ns-1": 1, "ns-2": 5}, live(v)); diff != "" {
		t.Fatal(diff)
	}
	if !problem(v.Problems, "schema version 99") || !problem(v.Problems, "c1.tenant.new") {
		t.Fatal(v.Problems)
	}
	for _, key := range []string{"garbage", "c1.tenant.Not_A_Name", "c1.what.is-it", "UPPER.tenant.x"} {
		if !problem(f.Problems(), key) {
			t.Errorf("key %q is not reported: %v", key, f.Problems())
		}
	}
	// What was retained stays over further views.
	vouch(t, kv, "c1", func(values map[string][]byte) { values["c1.tenant.ns-0"] = tenant.Encode(aTenant("c1", 0, 6)) })
	eventually(t, "the next record to be applied", func() bool { return live(f.Views()["c1"])["ns-0"] == 6 })
	if live(f.Views()["c1"])["ns-1"] != 1 {
		t.Fatal("the retained tenant is gone")
	}
	eventually(t, "the writer to mend all", func() bool {
		res := syncNow(t, w, aState("c1", 3))
		return f.Views()["c1"].Ready.Generation == res.Generation && len(f.Views()["c1"].Problems) == 0
	})
}

// vouch changes records and writes a Ready record that fits them.
func vouch(t testing.TB, kv jetstream.KeyValue, cluster string, change func(map[string][]byte)) {
	t.Helper()
	before := map[string][]byte{}
	for _, key := range must(kv.Keys(within(t))) {
		if k, err := tenant.ParseKey(key); err == nil && digested(k) && k.Cluster == cluster {
			before[key] = must(kv.Get(within(t), key)).Value()
		}
	}
	change(before)
	for key, value := range before {
		must(kv.Put(within(t), key, value))
	}
	status := must(kv.Status(within(t))).(*jetstream.KeyValueBucketStatus)
	readyKey := tenant.ReadyKey(cluster)
	old := must(tenant.DecodeReady(readyKey, must(kv.Get(within(t), readyKey.String())).Value()))
	must(kv.Put(within(t), readyKey.String(), tenant.Encode(tenant.Ready{
		Schema: tenant.Schema, Cluster: cluster, Generation: old.Generation + 1, Count: len(before), Hash: tenant.Digest(before),
		Epoch: incarnation{created: status.StreamInfo().Created}.epoch(),
	})))
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	sees(t, f, "c1", syncNow(t, w, aState("c1", 1)).Generation)
	if err := w.Heartbeat(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the heartbeat", func() bool { return f.Views()["c1"].Heartbeat.Writer == "test" })
	f.mu.Lock()
	later := f.clock().Add(staleAfter + time.Second)
	f.clock = func() time.Time { return later }
	f.mu.Unlock()
	eventually(t, "the silence to be reported", func() bool { return problem(f.Problems(), "no heartbeat") })
	if err := w.Heartbeat(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the silence to be over", func() bool { return !problem(f.Problems(), "no heartbeat") })
}

// Snapshots while the writer is at work: the hole that WatchAll has (a live key
// that comes after the end of the first read) must not show.
func TestFollowersThatStartUnderLoad(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	syncNow(t, w, aState("c1", 200))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for gen := int64(2); ; gen++ {
			select {
			case <-stop:
				return
			default:
			}
			s := aState("c1", 200)
			for i := range s.Tenants {
				s.Tenants[i].Generation = gen
			}
			if _, err := w.Sync(t.Context(), s); err != nil && t.Context().Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	conn := srv.connect("gw1")
	for range 15 {
		f := NewFollower(conn, FollowerOptions{Log: quiet()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		eventually(t, "a view", func() bool {
			v, ok := f.Views()["c1"]
			if ok && len(v.Tenants) != 200 {
				t.Fatalf("a view of %d tenants was confirmed", len(v.Tenants))
			}
			for _, x := range v.Tenants {
				if x.Generation != v.Tenants[0].Generation {
					t.Fatalf("a view of generations %d and %d was confirmed", v.Tenants[0].Generation, x.Generation)
				}
			}
			return ok
		})
		cancel()
		<-done
	}
	close(stop)
	<-stopped
}

// A Sync that fails is asked for again.
func TestFailedSyncIsDueAgain(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	syncNow(t, w, aState("c1", 1))
	drainSignal(w.changed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Sync(ctx, aState("c1", 2)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	eventually(t, "the writer to ask for a sync", func() bool { return received(w.Changed()) })
}
