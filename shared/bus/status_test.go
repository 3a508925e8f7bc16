// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/shared/tenant"
)

func startStatusWriter(t testing.TB, conn *Conn, gateway string) *StatusWriter {
	w := NewStatusWriter(conn, gateway, StatusOptions{Log: quiet()})
	run(t, w.Run)
	return w
}

func startStatusFollower(t testing.TB, conn *Conn, opts ...func(*StatusOptions)) *StatusFollower {
	o := StatusOptions{Log: quiet()}
	for _, opt := range opts {
		opt(&o)
	}
	f := NewStatusFollower(conn, o)
	run(t, f.Run)
	return f
}

// report returns a gateway's records: its summary and n statuses.
func report(gateway string, n int, generation int64) map[string][]byte {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	out := map[string][]byte{tenant.SummaryKey(gateway): tenant.Encode(tenant.Summary{Schema: tenant.Schema, Gateway: gateway, Group: "default", Tenants: n, Time: at})}
	for i := range n {
		name := fmt.Sprintf("ns-%d", i)
		out[tenant.StatusKey(gateway, "c1", name)] = tenant.Encode(tenant.Status{
			Schema: tenant.Schema, Gateway: gateway, Cluster: "c1", Name: name, UID: "u", Generation: generation, Programmed: true, Time: at,
		})
	}
	return out
}

func report1(t testing.TB, w *StatusWriter, records map[string][]byte) SyncResult {
	t.Helper()
	res, err := w.Sync(within(t), records)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// told returns what a follower tells, as gateway/tenant -> generation.
func told(f *StatusFollower) map[string]int64 {
	out := map[string]int64{}
	for name, list := range f.Statuses("c1") {
		for _, s := range list {
			out[s.Gateway+"/"+name] = s.Generation
		}
	}
	return out
}

func tells(t testing.TB, f *StatusFollower, want map[string]int64) {
	t.Helper()
	eventually(t, fmt.Sprint("the statuses ", want), func() bool { return maps.Equal(told(f), want) })
}

func TestStatus(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w1, w2 := startStatusWriter(t, srv.connect("gw1"), "gw1"), startStatusWriter(t, srv.connect("gw2"), "gw2")
	f := startStatusFollower(t, srv.connect("ca"))
	if res := report1(t, w1, report("gw1", 2, 1)); res.Written != 3 {
		t.Fatal(res)
	}
	report1(t, w2, report("gw2", 1, 5))
	tells(t, f, map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 1, "gw2/ns-0": 5})
	if got := f.Statuses("c1")["ns-0"]; len(got) != 2 || got[0].Gateway != "gw1" {
		t.Fatal(got)
	}
	eventually(t, "two summaries", func() bool { return len(f.Summaries()) == 2 })
	if res := report1(t, w1, report("gw1", 2, 1)); res.Changes() != 0 {
		t.Fatalf("the same again: %+v", res)
	}
	if res := report1(t, w1, report("gw1", 1, 2)); res.Written != 2 || res.Purged != 1 {
		t.Fatal(res)
	}
	tells(t, f, map[string]int64{"gw1/ns-0": 2, "gw2/ns-0": 5})
	if _, err := w1.Sync(within(t), report("gw2", 1, 1)); err == nil || !strings.Contains(err.Error(), "not of gateway gw1") {
		t.Fatal(err)
	}
}

// TestStatusRenew: one record is renewed without the others, as long as it is
// known that these are there.
func TestStatusRenew(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startStatusWriter(t, srv.connect("gw1"), "gw1")
	f := startStatusFollower(t, srv.connect("ca"))
	key := tenant.SummaryKey("gw1")
	renewed := func(n int) []byte {
		return tenant.Encode(tenant.Summary{Schema: tenant.Schema, Gateway: "gw1", Group: "default", Tenants: n, Time: time.Now().UTC()})
	}
	if err := w.Renew(within(t), key, renewed(1)); err == nil {
		t.Error("renewed before anything was written: what an earlier life left stays")
	}
	report1(t, w, report("gw1", 2, 1))
	if err := w.Renew(within(t), key, renewed(77)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the renewed summary", func() bool {
		s := f.Summaries()
		return len(s) == 1 && s[0].Tenants == 77
	})
	tells(t, f, map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 1})
	if res := report1(t, w, report("gw1", 2, 1)); res.Written != 1 || res.Purged != 0 {
		t.Errorf("after a renewal: %+v", res)
	}
	if err := w.Renew(within(t), tenant.SummaryKey("gw2"), renewed(1)); err == nil || !strings.Contains(err.Error(), "not of gateway gw1") {
		t.Error(err)
	}
	w.forget()
	if err := w.Renew(within(t), key, renewed(1)); err == nil {
		t.Error("renewed although nobody knows what the bucket holds")
	}
}

// A gateway that restarts removes what its earlier life left.
func TestStatusWriterRestart(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	report1(t, startStatusWriter(t, srv.connect("gw1"), "gw1"), report("gw1", 3, 1))
	report1(t, startStatusWriter(t, srv.connect("gw11"), "gw11"), report("gw11", 1, 1))
	f := startStatusFollower(t, srv.connect("ca"))
	if res := report1(t, startStatusWriter(t, srv.connect("gw1"), "gw1"), report("gw1", 1, 2)); res.Purged != 2 {
		t.Fatal(res)
	}
	tells(t, f, map[string]int64{"gw1/ns-0": 2, "gw11/ns-0": 1})
}

func TestStatusSurvivesTheServer(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startStatusWriter(t, srv.connect("gw1"), "gw1")
	var skew time.Duration
	now := time.Now
	f := startStatusFollower(t, srv.connect("ca"), func(o *StatusOptions) { o.Clock = func() time.Time { return now().Add(skew) } })
	report1(t, w, report("gw1", 2, 1))
	tells(t, f, map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 1})
	drainSignal(w.changed)

	srv.kill()
	srv.wipe()
	srv.start()
	srv.setup()
	eventually(t, "the writer to ask for a sync", func() bool { return received(w.Changed()) && w.conn.Connected() })
	eventually(t, "the follower to read the new bucket", func() bool { return len(f.Problems()) == 0 })
	if len(told(f)) != 2 {
		t.Fatalf("an empty server made statuses vanish at once: %v", told(f))
	}
	if res := report1(t, w, report("gw1", 1, 2)); res.Written != 2 {
		t.Fatalf("not all was written again: %+v", res)
	}
	tells(t, f, map[string]int64{"gw1/ns-0": 2, "gw1/ns-1": 1}) // ns-1 is in its time of grace
	f.mu.Lock()
	skew = statusGrace
	f.mu.Unlock()
	tells(t, f, map[string]int64{"gw1/ns-0": 2})

	// Recreated under a connection that holds.
	js := srv.raw()
	drainSignal(w.changed)
	if err := js.DeleteKeyValue(within(t), StatusBucket); err != nil {
		t.Fatal(err)
	}
	srv.setup()
	eventually(t, "the writer to ask for a sync", func() bool { return received(w.Changed()) })
	report1(t, w, report("gw1", 2, 3))
	tells(t, f, map[string]int64{"gw1/ns-0": 3, "gw1/ns-1": 3})
}

// A record that a frozen server delivers late, over a newer one, is mended.
func TestStatusThatArrivesLate(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	d := &cutter{}
	var skew atomic.Int64
	conn := srv.connect("gw1", WithDialer(d))
	w := NewStatusWriter(conn, "gw1", StatusOptions{
		Clock: func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }, Log: quiet(),
	})
	run(t, w.Run)
	f := startStatusFollower(t, srv.connect("ca"))
	report1(t, w, report("gw1", 2, 1))
	drainSignal(w.changed)
	d.cut()
	eventually(t, "the writer to ask for a sync", func() bool { return received(w.Changed()) && conn.Connected() })
	eventually(t, "a sync", func() bool { _, err := w.Sync(within(t), report("gw1", 2, 2)); return err == nil })
	tells(t, f, map[string]int64{"gw1/ns-0": 2, "gw1/ns-1": 2})
	kv := must(srv.raw().KeyValue(within(t), StatusBucket))
	must(kv.Put(within(t), "gw1.tenant.c1.ns-0", report("gw1", 2, 1)["gw1.tenant.c1.ns-0"]))
	tells(t, f, map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 2})
	drainSignal(w.changed)
	skew.Store(int64(compareEvery))
	eventually(t, "the writer to ask for a sync", func() bool { return received(w.Changed()) })
	report1(t, w, report("gw1", 2, 2))
	tells(t, f, map[string]int64{"gw1/ns-0": 2, "gw1/ns-1": 2})
}

func TestStatusGarbage(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startStatusWriter(t, srv.connect("gw1"), "gw1")
	f := startStatusFollower(t, srv.connect("ca"))
	report1(t, w, report("gw1", 2, 1))
	tells(t, f, map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 1})
	eventually(t, "the summary", func() bool { return len(f.Summaries()) == 1 })
	kv := must(srv.raw().KeyValue(within(t), StatusBucket))
	for _, key := range []string{"gw1.tenant.c1.ns-0", "gw1.summary", "gw9.tenant.c1.ns-5", "what"} {
		must(kv.PutString(within(t), key, "garbage"))
	}
	for _, key := range []string{"gw1.tenant.c1.ns-0", "gw1.summary", "gw9.tenant.c1.ns-5", "what"} {
		eventually(t, key+" to be reported", func() bool { return problem(f.Problems(), key) })
	}
	if diff := cmp.Diff(map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 1}, told(f)); diff != "" {
		t.Fatal(diff)
	}
	if len(f.Summaries()) != 1 {
		t.Fatal(f.Summaries())
	}
	report1(t, w, report("gw1", 2, 2)) // the summary is the same, and is not written
	eventually(t, "the mended record", func() bool { return !problem(f.Problems(), "gw1.tenant.c1.ns-0") })
}

func TestSummaryTimeIsNoNews(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startStatusWriter(t, srv.connect("gw1"), "gw1")
	f := startStatusFollower(t, srv.connect("ca"))
	summary := tenant.Summary{Schema: tenant.Schema, Gateway: "gw1", Group: "default", Time: time.Unix(1, 0).UTC()}
	put := func() { report1(t, w, map[string][]byte{"gw1.summary": tenant.Encode(summary)}) }
	at := func() int64 {
		if s := f.Summaries(); len(s) == 1 {
			return s[0].Time.Unix()
		}
		return 0
	}
	put()
	eventually(t, "the summary", func() bool { return at() == 1 })
	eventually(t, "the connection to be fine", func() bool { return len(f.Problems()) == 0 })
	drainSignal(f.changed)
	summary.Time = time.Unix(2, 0).UTC()
	put()
	eventually(t, "the next summary", func() bool { return at() == 2 })
	if received(f.Changed()) {
		t.Fatal("a change of time alone was called a change")
	}
	summary.Problems = slices.Clone([]string{"x"})
	put()
	eventually(t, "the news", func() bool { return received(f.Changed()) })
}
