// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// verifyAfter is how long after a change, when no other has followed, the
	// kernel is looked at afresh; and lookAfresh how long that is not done.
	verifyAfter = time.Second
	lookAfresh  = 5 * time.Minute
)

// freshness is what the loop knows of its looks at all of the kernel, so that
// what was carried over from look to look is never believed for long.
type freshness struct {
	looked     time.Time       // when the last one was
	unverified time.Time       // when the first change after it was, or the first look that gave way
	due        bool            // it is time for the next
	changed    <-chan struct{} // what a look gives way to; nil: nothing
}

// errGaveWay ends a look at all of the kernel for a change, which would else wait
// for as long as it takes.
var errGaveWay = errors.New("a change came")

// look reads the kernel: afresh, if that is due. A change that comes meanwhile
// ends that with errGaveWay, and the look is due again later.
func (l *Loop) look(ctx context.Context) (sight Sight, afresh bool, err error) {
	afresh, gaveWay := l.due || l.looked.IsZero(), false
	if afresh && l.givesWay() {
		sight, gaveWay, err = l.lookUnlessChanged(ctx)
	} else {
		sight, err = l.Kernel.Look(ctx, afresh)
	}
	switch {
	case gaveWay:
		if l.due = false; l.unverified.IsZero() {
			l.unverified = l.Clock()
		}
		return sight, afresh, errGaveWay
	case err != nil:
		l.planned.done = false
		return sight, afresh, fmt.Errorf("observe the kernel: %w", err)
	case afresh:
		l.looked, l.unverified, l.due = l.Clock(), time.Time{}, false
	}
	return sight, afresh, nil
}

// lookUnlessChanged looks afresh until a change comes. One that comes when the
// look is done takes nothing from it: the pass goes on, and serves it.
func (l *Loop) lookUnlessChanged(ctx context.Context) (sight Sight, gaveWay bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	came := make(chan bool, 1)
	go func() {
		select {
		case <-l.changed:
			came <- true
			cancel()
		case <-ctx.Done():
			came <- false
		}
	}()
	sight, err = l.Kernel.Look(ctx, true)
	cancel()
	return sight, <-came && err != nil, err
}

// givesWay tells whether a look at all of the kernel may wait for changes: not if
// the last pass has left something undone, as all is compared then anyway, and
// not for ever.
func (l *Loop) givesWay() bool {
	return l.planned.done && (l.unverified.IsZero() || l.Clock().Sub(l.unverified) < l.longest())
}

// longest is how long changes may put off a look at all of the kernel.
func (l *Loop) longest() time.Duration { return min(l.Resync, lookAfresh) }

// nextFresh returns when it is time to look afresh, nil if not before the next
// pass: at once where that was put off, or not done, for long, and else a moment
// after a change: has the kernel really taken it, and keeps it?
func (l *Loop) nextFresh() <-chan time.Time {
	switch now := l.Clock(); {
	case l.unverified.IsZero() && now.Sub(l.looked) < lookAfresh:
		return nil
	case l.unverified.IsZero() || now.Sub(l.unverified) >= l.longest():
		return time.After(0)
	}
	return time.After(verifyAfter)
}
