// SPDX-License-Identifier: Apache-2.0

// Package announce tells neighbours where the gateway's addresses are, and
// learns which nodes have asked for them.
package announce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Target is an address to announce from a link.
type Target struct {
	Dev string
	IP  netip.Addr
}

// Options of an Announcer. Zero values mean the defaults.
type Options struct {
	PerSecond int           // packets per second, default 20: an OVN node takes 25 ARP packets
	Burst     int           // packets at once after a pause, default 4
	Repeat    int           // announcements of a new address, default 3
	Interval  time.Duration // between these, default 1 s
	Refresh   time.Duration // of all addresses, default 100 s: switches forget a MAC after 300 s, nothing else keeps it known
	Log       *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.PerSecond <= 0 {
		o.PerSecond = 20
	}
	if o.Burst <= 0 {
		o.Burst = 4
	}
	if o.Repeat <= 0 {
		o.Repeat = 3
	}
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	if o.Refresh <= 0 {
		o.Refresh = 100 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Announcer sends announcements, paced over all of them. Its methods are safe
// for concurrent use.
type Announcer struct {
	o    Options
	fd   int
	wake chan struct{} // holds one token: something became due

	mu   sync.Mutex
	kept map[Target]bool
	// places are the links of the kept addresses.
	places map[netip.Addr]string
	due    schedule

	closing sync.Once
}

// New fails without CAP_NET_RAW. The network namespace is that of the caller.
// The caller has to call Run, or Close if it never does.
func New(o Options) (*Announcer, error) {
	// Protocol 0: the socket sends only, the kernel queues nothing for it.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	return &Announcer{o: o.withDefaults(), fd: fd, wake: make(chan struct{}, 1), kept: make(map[Target]bool)}, nil
}

// Announce queues announcements of addresses that are new at their place; it
// does not wait for them to be sent. They go ahead of refreshes.
func (a *Announcer) Announce(targets ...Target) {
	a.mu.Lock()
	now := time.Now()
	for _, t := range targets {
		a.due.put(entry{target: t, at: now, left: a.o.Repeat})
	}
	a.mu.Unlock()
	a.poke()
}

// Keep replaces the set of addresses that are announced again and again. What
// is queued of other addresses is dropped, so that no address is announced
// after it went away.
func (a *Announcer) Keep(all []Target) {
	a.mu.Lock()
	now, kept := time.Now(), make(map[Target]bool, len(all))
	a.places = make(map[netip.Addr]string, len(all))
	for i, t := range all {
		kept[t] = true
		a.places[t.IP] = t.Dev
		if !a.kept[t] && !a.due.has(t) {
			// Spread out, so that thousands of refreshes do not fall due at once.
			a.due.put(entry{target: t, at: now.Add(a.o.Refresh * time.Duration(i) / time.Duration(len(all)))})
		}
	}
	a.kept = kept
	a.due.keep(func(t Target) bool { return kept[t] })
	a.mu.Unlock()
	a.poke()
}

func (a *Announcer) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run sends until ctx ends, and returns nil then. An announcement that fails,
// for example because its link is gone, is logged once and not repeated.
func (a *Announcer) Run(ctx context.Context) error {
	defer a.Close()
	pace := newPacer(a.o.PerSecond, a.o.Burst, time.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		timer.Reset(a.sendDue(pace))
	}
}

// sendDue sends what is due and the pace allows, and returns how long to wait.
func (a *Announcer) sendDue(pace *pacer) time.Duration {
	const idle = time.Hour // a poke ends it
	for {
		now := time.Now()
		if wait := pace.wait(now); wait > 0 {
			return wait
		}
		a.mu.Lock()
		e, wait, ok := a.due.take(now, idle)
		if !ok {
			a.mu.Unlock()
			return wait
		}
		if next, more := a.after(e, now); more {
			a.due.put(next)
		}
		a.mu.Unlock()

		pace.spend()
		if err := a.send(e); err != nil {
			a.forget(e.target, err)
		}
	}
}

// after returns what follows e: the second form of the pair at once, the next
// pair of a new address soon, else a refresh if the address is kept.
func (a *Announcer) after(e entry, now time.Time) (entry, bool) {
	next := entry{target: e.target, left: e.left}
	switch {
	case e.target.IP.Is4() && !e.second:
		next.second, next.at = true, now
		return next, true
	case e.left > 1:
		next.left, next.at = e.left-1, now.Add(a.o.Interval)
		return next, true
	}
	next.left, next.at = 0, now.Add(a.o.Refresh)
	return next, a.kept[e.target]
}

func (a *Announcer) forget(t Target, err error) {
	a.mu.Lock()
	kept := a.kept[t]
	a.due.drop(t)
	if kept {
		a.due.put(entry{target: t, at: time.Now().Add(a.o.Refresh)})
	}
	a.mu.Unlock()
	a.o.Log.Warn("announcement failed", "dev", t.Dev, "ip", t.IP.String(), "err", err)
}

// Close releases the socket. Run does that too.
func (a *Announcer) Close() error {
	err := io.ErrClosedPipe
	a.closing.Do(func() { err = unix.Close(a.fd) })
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
