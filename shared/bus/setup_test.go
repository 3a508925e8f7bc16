// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// Setup mends what another hand made, and says so; content stays.
func TestSetupChanges(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	recreate(t, srv.raw())
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	res := syncNow(t, w, aState("c1", 5))
	if done := srv.setup(); len(done) != 1 || done[0] != "bucket egress-state changed" {
		t.Errorf("setup did %q", done)
	}
	if done := srv.setup(); len(done) != 0 {
		t.Errorf("setup did %q again", done)
	}
	if got := live(sees(t, f, "c1", res.Generation)); len(got) != 5 {
		t.Errorf("%d tenants are left", len(got))
	}
}

// A bucket that was deleted is waited for, and filled once it is there again.
func TestWaitingForSetup(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	sees(t, f, "c1", syncNow(t, w, aState("c1", 5)).Generation)
	for range 3 {
		if err := srv.raw().DeleteKeyValue(within(t), StateBucket); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the loss to be noticed", func() bool {
			_, err := w.Sync(within(t), aState("c1", 6))
			return errors.Is(err, errBucketMissing)
		})
		srv.setup()
		var res SyncResult
		eventually(t, "the writer to write again", func() bool {
			var err error
			res, err = w.Sync(within(t), aState("c1", 6))
			return err == nil
		})
		sees(t, f, "c1", res.Generation)
	}
}

// A stream that can not be made what it should be is an error that names it.
func TestSetupRefused(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	js := srv.raw()
	if err := js.DeleteStream(within(t), AuditStream); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(within(t), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"egress.>"}}); err != nil {
		t.Fatal(err)
	}
	conn := srv.connect("setup")
	if _, err := Setup(within(t), conn, 1); err == nil || !strings.Contains(err.Error(), "set up stream EGRESS_AUDIT") {
		t.Errorf("error %v", err)
	}
}

// The named reader of a life that was cut off does not stand in the way of the
// next one, which begins from scratch.
func TestNamedReaderIsReplaced(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	gen := syncNow(t, w, aState("c1", 20)).Generation
	d := &cutter{}
	f := NewFollower(srv.connect("gw1", WithDialer(d)), FollowerOptions{Reader: "gw1", Log: quiet()})
	run(t, f.Run)
	sees(t, f, "c1", gen)
	for i := range readerNames + 2 {
		d.cut() // its consumer stays on the server
		gen = syncNow(t, w, aState("c1", 10+i)).Generation
		if got := live(sees(t, f, "c1", gen)); len(got) != 10+i {
			t.Fatalf("%d tenants", len(got))
		}
	}
	stream := must(srv.raw().Stream(within(t), streamOf(StateBucket)))
	names := 0
	for range stream.ConsumerNames(within(t)).Name() {
		names++
	}
	if names > readerNames+1 { // and the writer's
		t.Errorf("%d consumers are left", names)
	}
}
