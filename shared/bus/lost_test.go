// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
)

func TestServerRestart(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	res := syncNow(t, w, aState("c1", 20))
	before := sees(t, f, "c1", res.Generation)

	srv.kill()
	eventually(t, "the loss to be reported", func() bool { return problem(f.Problems(), "cut off") })
	if _, err := w.Sync(within(t), aState("c1", 21)); !errors.Is(err, ErrNotConnected) {
		t.Fatalf("sync without a server: %v", err)
	}
	if diff := cmp.Diff(live(before), live(f.Views()["c1"])); diff != "" {
		t.Fatal(diff)
	}
	drainSignal(w.changed)
	srv.start()
	eventually(t, "the writer to ask for a sync", func() bool { return received(w.Changed()) })
	res = syncNow(t, w, aState("c1", 21))
	if res.Written != 1 {
		t.Fatalf("%+v", res)
	}
	sees(t, f, "c1", res.Generation)
	eventually(t, "the loss to be over", func() bool { return !problem(f.Problems(), "cut off") })
}

func received(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestServerWiped(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	before := syncNow(t, w, aState("c1", 20))
	sees(t, f, "c1", before.Generation)

	srv.kill()
	srv.wipe()
	srv.start()
	eventually(t, "the missing bucket to be reported", func() bool { return problem(f.Problems(), errBucketMissing.Error()) })
	if got := live(f.Views()["c1"]); len(got) != 20 {
		t.Fatalf("an empty server removed tenants: %d left", len(got))
	}
	eventually(t, "the writer to know", func() bool {
		_, err := w.Sync(within(t), aState("c1", 19))
		return errors.Is(err, errBucketMissing)
	})
	srv.setup()
	var res SyncResult
	eventually(t, "the writer to see the new bucket", func() bool {
		var err error
		res, err = w.Sync(within(t), aState("c1", 19)) // writes all
		return err == nil
	})
	if res.Written != 21 || res.Generation <= before.Generation {
		t.Fatalf("%+v after %+v", res, before)
	}
	if got := live(sees(t, f, "c1", res.Generation)); len(got) != 19 {
		t.Fatal(len(got))
	}
}

// The trap that leaves a WatchAll deaf: the bucket is deleted and recreated
// before the reader looks. Control: a naive watcher, which must stay deaf for
// this test to prove anything.
func TestBucketRecreated(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	before := syncNow(t, w, aState("c1", 50))
	sees(t, f, "c1", before.Generation)
	js := srv.raw()
	naive := must(must(js.KeyValue(within(t), StateBucket)).WatchAll(within(t)))
	for e := range naive.Updates() {
		if e == nil {
			break
		}
	}

	recreate(t, js)
	eventually(t, "the writer to ask for a sync", func() bool {
		return received(w.Changed()) && strings.Contains(w.state(), "empty")
	})
	if got := live(f.Views()["c1"]); len(got) != 50 {
		t.Fatalf("an empty bucket removed tenants: %d left", len(got))
	}
	res := syncNow(t, w, aState("c1", 3))
	if got := live(sees(t, f, "c1", res.Generation)); len(got) != 3 {
		t.Fatal(got)
	}
	select {
	case e := <-naive.Updates():
		t.Fatalf("the control heard %v: this test proves nothing any more", e)
	default:
	}
}

func recreate(t testing.TB, js jetstream.JetStream) {
	t.Helper()
	if err := js.DeleteKeyValue(within(t), StateBucket); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateKeyValue(within(t), jetstream.KeyValueConfig{Bucket: StateBucket, History: 8}); err != nil {
		t.Fatal(err)
	}
}

// state says in a word what the writer believes the bucket to be.
func (w *Writer) state() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.mirror.loaded:
		return "unknown"
	case len(w.mirror.entries) == 0:
		return "empty"
	}
	return "filled"
}

// Records and Ready that come from another bucket, as after a restore from a
// backup, are not believed.
func TestReadyOfAnotherBucket(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	res := syncNow(t, w, aState("c1", 2))
	sees(t, f, "c1", res.Generation)
	js := srv.raw()
	kv := must(js.KeyValue(within(t), StateBucket))
	copied := map[string][]byte{}
	for _, key := range must(kv.Keys(within(t))) {
		copied[key] = must(kv.Get(within(t), key)).Value()
	}
	delete(copied, "c1.tenant.ns-0")
	recreate(t, js)
	kv = must(js.KeyValue(within(t), StateBucket))
	for key, value := range copied {
		must(kv.Put(within(t), key, value))
	}
	eventually(t, "the copy to be reported", func() bool { return problem(f.Problems(), "another bucket") })
	if got := live(f.Views()["c1"]); len(got) != 2 {
		t.Fatal(got)
	}
	res = syncNow(t, w, aState("c1", 2))
	sees(t, f, "c1", res.Generation)
	eventually(t, "the problem to be over", func() bool { return !problem(f.Problems(), "another bucket") })
}

// An administrator purges the stream: readers are told nothing at all.
func TestBucketPurged(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	before := syncNow(t, w, aState("c1", 5))
	sees(t, f, "c1", before.Generation)
	stream := must(srv.raw().Stream(within(t), streamOf(StateBucket)))
	if err := stream.Purge(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the writer to see it", func() bool { return w.state() == "empty" })
	if got := live(f.Views()["c1"]); len(got) != 5 {
		t.Fatal(got)
	}
	res := syncNow(t, w, aState("c1", 5))
	if res.Written != 7 || res.Generation <= before.Generation {
		t.Fatal(res)
	}
	sees(t, f, "c1", res.Generation)
}

// A follower has the new state as soon as it is connected again: WatchAll takes
// 20 s for that.
func TestNewStateRightAfterReconnect(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	d := &cutter{}
	conn := srv.connect("gw1", WithDialer(d), WithReconnectWait(500*time.Millisecond))
	f := startFollower(t, conn)
	sees(t, f, "c1", syncNow(t, w, aState("c1", 1000)).Generation)
	d.cut()
	eventually(t, "the loss", func() bool { return !conn.Connected() })
	gen := syncNow(t, w, aState("c1", 900)).Generation
	eventually(t, "the connection", conn.Connected)
	start := time.Now()
	sees(t, f, "c1", gen)
	if took := time.Since(start); took > 2*time.Second {
		t.Fatalf("it took %s", took)
	} else {
		t.Logf("%s after the reconnect", took)
	}
}
