// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Whoever may write one key of a bucket can have the whole bucket rolled up into
// it, which erases the others' keys. They notice, and write them again; nobody
// drops what is gone.
func TestRolledUpByAStolenKey(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	w := startWriter(t, srv.connect("ca"), "c1")
	f := startFollower(t, srv.connect("gw1"))
	sw := startStatusWriter(t, srv.connect("gw1"), "gw1")
	sf := startStatusFollower(t, srv.connect("ca"))
	state := aState("c1", 20)
	sees(t, f, "c1", syncNow(t, w, state).Generation)
	report1(t, sw, report("gw1", 2, 1))
	tells(t, sf, map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 1})
	drainSignal(w.changed)
	drainSignal(sw.changed)

	js := srv.raw()
	for _, key := range []string{"$KV.egress-state.thief.x", "$KV.egress-status.thief.x"} {
		m := nats.NewMsg(key)
		m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupAll)
		must(js.PublishMsg(within(t), m))
	}
	for name, changed := range map[string]<-chan struct{}{"cluster's": w.Changed(), "gateway's": sw.Changed()} {
		eventually(t, "the "+name+" writer to ask for a sync", func() bool { return received(changed) })
	}
	if got := live(f.Views()["c1"]); len(got) != 20 {
		t.Fatalf("%d tenants are left", len(got))
	}
	if res := syncNow(t, w, state); res.Written != 22 {
		t.Errorf("the writer wrote %+v", res)
	}
	if res := report1(t, sw, report("gw1", 2, 1)); res.Written != 3 {
		t.Errorf("the gateway wrote %+v", res)
	}
	if got := live(f.Views()["c1"]); len(got) != 20 {
		t.Fatalf("%d tenants are left", len(got))
	}
}
