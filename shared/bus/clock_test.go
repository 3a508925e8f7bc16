// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"testing"
	"time"

	"egress-gateway.io/shared/tenant"
)

func TestServerClock(t *testing.T) {
	t.Parallel()
	var c serverClock
	at := time.Now()
	if _, known := c.best(at); known {
		t.Error("it knows something before the first answer")
	}
	// The server is 5 s ahead. A slow way there, then a slow way back: either
	// alone is wrong by nearly its half, and says so.
	ask := func(there, back time.Duration) {
		c.add(at, at.Add(there).Add(5*time.Second), at.Add(there+back))
	}
	for _, w := range [][2]time.Duration{{800 * time.Millisecond, 0}, {0, 600 * time.Millisecond}, {3 * time.Millisecond, time.Millisecond}} {
		ask(w[0], w[1])
		s, known := c.best(at)
		if off := (s.ahead - 5*time.Second).Abs(); !known || off > s.uncertain {
			t.Errorf("after %v: %s ahead, uncertain by %s, but it is 5s", w, s.ahead, s.uncertain)
		}
	}
	if s, _ := c.best(at); s.uncertain != 2*time.Millisecond {
		t.Errorf("the quickest exchange is not taken: uncertain by %s", s.uncertain)
	}
	for range clockSamples {
		ask(100*time.Millisecond, 0)
	}
	if s, _ := c.best(at); s.uncertain != 50*time.Millisecond {
		t.Errorf("old samples are kept for ever: %+v", s)
	}
	if _, known := c.best(at.Add(2 * clockWindow)); known {
		t.Error("a sample of two minutes ago counts")
	}
	c.add(at, time.Time{}, at)                         // a server that does not tell
	c.add(at, at.Add(time.Hour), at.Add(-time.Second)) // answered before it was asked
	if s, _ := c.best(at); s.uncertain != 50*time.Millisecond {
		t.Errorf("nonsense is taken: %+v", s)
	}
	c.reset()
	if _, known := c.best(at); known {
		t.Error("another server's clock is remembered")
	}
}

// The writer's clock is wrong by far; the reader finds out by how much, whether
// it was there when the heartbeat came or reads it later.
func TestClockOfAWriter(t *testing.T) {
	t.Parallel()
	const ahead = -90 * time.Second
	srv := startServer(t)
	conn := srv.connect("ca")
	w := startWriter(t, conn, "c1", func(o *WriterOptions) { o.Clock = func() time.Time { return time.Now().Add(ahead) } })
	syncNow(t, w, aState("c1", 1))
	if err := w.Heartbeat(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server's clock", func() bool { _, _, known := conn.ServerClock(); return known })
	if off, uncertain, _ := conn.ServerClock(); off.Abs() > uncertain {
		t.Errorf("the server is on this machine, but %s ahead, uncertain by %s", off, uncertain)
	}
	f := startFollower(t, srv.connect("gw1"))
	var s Sign
	eventually(t, "the writer's clock", func() bool { s = f.Signs()["c1"]; return s.AheadKnown })
	if d := s.Ahead - ahead; d.Abs() > time.Second {
		t.Errorf("ahead by %s, want %s", s.Ahead, ahead)
	}
	if s.Age > patience {
		t.Errorf("heard %s ago: that is not the writer's clock's to tell", s.Age)
	}
	if f.Signs()["c2"].AheadKnown {
		t.Error("a cluster without heartbeats has a clock")
	}
	srv.kill()
	eventually(t, "the server's end", func() bool { return !f.Signs()["c1"].AheadKnown })
}

func TestRejectedSnapshots(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	gen := syncNow(t, w, aState("c1", 2)).Generation
	sees(t, f, "c1", gen)
	for reason, n := range f.Rejected() {
		if n != 0 {
			t.Errorf("%d rejected as %s before anything was wrong", n, reason)
		}
	}
	ready := f.Views()["c1"].Ready
	ready.Generation--
	kv, err := srv.raw().KeyValue(within(t), StateBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(within(t), tenant.ReadyKey("c1").String(), tenant.Encode(ready)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the older one to be counted", func() bool { return f.Rejected()["older"] > 0 })
	ready.Generation, ready.Count = gen+1_000_000, 99
	if _, err := kv.Put(within(t), tenant.ReadyKey("c1").String(), tenant.Encode(ready)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the incomplete one to be counted", func() bool { return f.Rejected()["incomplete"] == 1 })
}

func TestAgesOfGateways(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := NewStatusWriter(srv.connect("gw1"), "gw1", StatusOptions{Log: quiet()})
	run(t, w.Run)
	sum := tenant.Summary{Schema: tenant.Schema, Gateway: "gw1", Group: "default", Time: time.Now().Add(-time.Hour).UTC()}
	if _, err := w.Sync(within(t), map[string][]byte{tenant.SummaryKey("gw1"): tenant.Encode(sum)}); err != nil {
		t.Fatal(err)
	}
	f := NewStatusFollower(srv.connect("ca"), StatusOptions{Log: quiet()})
	run(t, f.Run)
	eventually(t, "the gateway", func() bool { return len(f.Ages()) == 1 })
	if age := f.Ages()["gw1"]; age > patience {
		t.Errorf("heard %s ago: that is not the gateway's clock's to tell", age)
	}
}
