// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"testing"
	"time"
)

// busy has one change after the other come, each while all of the kernel is
// being read.
type busy struct {
	*bench
	changed    chan struct{}
	generation int64
	gaveWay    int
}

func newBusy(t *testing.T) *busy {
	b := &busy{bench: newBench(t), changed: make(chan struct{}, 1)}
	b.change()
	b.mustPass()
	b.loop.changed = b.changed
	b.kernel.reading = func(ctx context.Context) {
		b.change()
		b.changed <- struct{}{}
		if b.loop.givesWay() {
			select {
			case <-ctx.Done():
				b.gaveWay++
			case <-time.After(10 * time.Second):
				t.Error("a change waits for a look at everything")
				<-b.changed
			}
		}
	}
	return b
}

// change has red come and go.
func (b *busy) change() {
	b.generation++
	all := blueAndRed()
	if b.generation%2 == 1 {
		all["red"] = tombstone(all["red"])
	}
	b.show(b.generation, all, node("n1", 0))
}

// TestChangeDoesNotWaitForFreshLook: what is being looked at for no change gives
// way to one, and the pass serves that. The look is made later.
func TestChangeDoesNotWaitForFreshLook(t *testing.T) {
	b := newBusy(t)
	looks := b.kernel.fresh
	b.loop.due = true
	b.mustPass()
	if p := b.loop.Snapshot().Pass; b.gaveWay != 1 || b.kernel.fresh != looks || p.Kind != PassPart {
		t.Errorf("%d looks gave way, %d were made; the pass was of kind %q", b.gaveWay, b.kernel.fresh-looks, p.Kind)
	}
	b.want("addresses", bothAddrs, b.kernel.addrs())
	if b.loop.due || b.loop.nextFresh() == nil {
		t.Error("the look is due at once, or never")
	}
	b.kernel.reading, b.loop.due = nil, true
	b.mustPass()
	if b.kernel.fresh != looks+1 || !b.loop.unverified.IsZero() {
		t.Error("the look was not made")
	}
}

// TestFreshLookIsNotPutOffForEver: changes that come each time put it off for as
// long as a resync takes. Then one of them waits.
func TestFreshLookIsNotPutOffForEver(t *testing.T) {
	for _, cause := range []string{"a change", "minutes"} {
		b := newBusy(t)
		b.loop.Resync = 30 * time.Second
		if reading := b.kernel.reading; cause == "minutes" {
			b.kernel.reading, b.loop.due = nil, true
			b.mustPass()
			b.kernel.reading = reading
			b.now = b.now.Add(lookAfresh)
		}
		looks, began := b.kernel.fresh, b.now
		for b.kernel.fresh == looks && b.now.Sub(began) < time.Minute {
			if b.loop.nextFresh() == nil {
				t.Fatalf("after %s: the look was forgotten", cause)
			}
			b.loop.due = true
			b.mustPass()
			b.now = b.now.Add(time.Second)
		}
		if took := b.now.Sub(began); took < 30*time.Second || took > 32*time.Second || b.gaveWay < 29 {
			t.Errorf("after %s: %d looks gave way, and one was made after %s", cause, b.gaveWay, took)
		}
		if len(b.changed) == 0 {
			t.Errorf("after %s: the change that came last is not waiting", cause)
		}
	}
}

// TestFailedPassLooksInAnyCase: where something is left undone all is compared
// anyway, and a look does not give way.
func TestFailedPassLooksInAnyCase(t *testing.T) {
	b := newBusy(t)
	b.change()
	b.kernel.failing = "192.168.99.14/32 dev eg002"
	if _, ok := b.pass(); ok {
		t.Fatal("the pass counts as good")
	}
	b.kernel.failing, b.loop.due = "", true
	b.mustPass()
	if b.gaveWay != 0 || len(b.changed) != 1 {
		t.Errorf("%d looks gave way", b.gaveWay)
	}
}

// TestRunServesChangeDuringFreshLook: in the loop itself the change is served at
// once, and the look follows.
func TestRunServesChangeDuringFreshLook(t *testing.T) {
	b := newBench(t)
	b.show(1, without(blueAndRed(), "red"), node("n1", 0))
	looks, changed := 0, make(chan struct{}, 1)
	b.kernel.reading = func(ctx context.Context) {
		if looks++; looks == 3 { // after adopting, and the first pass, whether that did what it should
			b.show(2, blueAndRed(), node("n1", 0))
			changed <- struct{}{}
			<-ctx.Done()
		}
	}
	type made struct {
		kind         string
		looks, fresh int
	}
	passes := make(chan made, 10)
	b.loop.OnPass = func(p Pass) { passes <- made{p.Kind, looks, b.kernel.fresh} }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	b.kernel.fresh = 0
	go func() { done <- b.loop.Run(ctx, changed) }()
	for _, want := range []made{{PassWhole, 2, 2}, {PassPart, 3, 2}, {PassWhole, 4, 3}} {
		select {
		case got := <-passes:
			if got != want {
				t.Errorf("a pass %+v, want %+v", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no pass %+v", want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.want("addresses", bothAddrs, b.kernel.addrs())
}
