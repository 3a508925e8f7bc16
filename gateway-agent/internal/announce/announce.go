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

// Options of an Announcer. Zero values mean the defaults, which suit the nodes'
// network.
type Options struct {
	// PerSecond are the packets a second that neighbours may learn from, default
	// 20: an OVN node takes 25 of these. Requests are the others: gratuitous ARP
	// requests, default 100.
	PerSecond, Requests int
	// Burst are the packets at once after a pause, default 4; of requests as many
	// as come together in requestsRest.
	Burst    int
	Repeat   int           // announcements of a new address, default 3
	Interval time.Duration // between these, default 1 s
	Refresh  time.Duration // of all addresses, default 100 s: switches forget a MAC after 300 s, nothing else keeps it known
	Log      *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.PerSecond <= 0 {
		o.PerSecond = 20
	}
	if o.Requests <= 0 {
		o.Requests = 100
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

// requestsRest is the time between two wake-ups for nothing but refreshes by
// requests: to wake for one costs more than to send it.
const requestsRest = 500 * time.Millisecond

// rest is the same for refreshes by advertisements, which come in bursts. It is
// as long as the pace wants for one.
func (o Options) rest() time.Duration {
	return min(requestsRest, time.Second*time.Duration(o.Burst)/time.Duration(o.PerSecond))
}

// Announcer sends announcements, paced over all of them. Its methods are safe
// for concurrent use.
type Announcer struct {
	o    Options
	out  *sender
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
	o = o.withDefaults()
	return &Announcer{o: o, out: newSender(fd), wake: make(chan struct{}, 1), kept: make(map[Target]bool), due: newSchedule(o, time.Now())}, nil
}

// Announce queues announcements of addresses that are new at their place; it
// does not wait for them to be sent. They go ahead of refreshes.
func (a *Announcer) Announce(targets ...Target) {
	a.mu.Lock()
	now := time.Now()
	for _, t := range targets {
		a.due.put(entry{target: t, at: now, form: firstForm(t), left: a.o.Repeat})
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
			a.due.put(entry{target: t, form: firstForm(t), at: now.Add(a.o.Refresh * time.Duration(i) / time.Duration(len(all)))})
		}
	}
	a.kept = kept
	a.due.keep(func(t Target) bool { return kept[t] })
	a.mu.Unlock()
	a.poke()
}

// At returns the link of an address that is kept.
func (a *Announcer) At(ip netip.Addr) (dev string, kept bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	dev, kept = a.places[ip]
	return dev, kept
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
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		timer.Reset(a.sendDue())
	}
}

// sendDue sends what is due and the pace allows, and returns how long to wait.
func (a *Announcer) sendDue() time.Duration {
	var batch [batchSize]entry
	for {
		n, wait := a.collect(batch[:], time.Now())
		if n > 0 {
			a.out.send(batch[:n], a.forget)
		}
		if n < len(batch) {
			return wait
		}
	}
}

// collect fills batch with what is to be sent now. If that is less than batch
// holds, it also returns how long there will be nothing. Refreshes come together:
// all announcers of the process wake at multiples of the same times.
func (a *Announcer) collect(batch []entry, now time.Time) (n int, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for n < len(batch) {
		e, wait, ok := a.next(now)
		if ok {
			batch[n] = e
			n++
			continue
		}
		if !a.due.anyFresh() {
			rest := requestsRest
			if len(a.due.learned.refresh) > 0 {
				rest = a.o.rest()
			}
			later := now.Add(wait).Round(0)
			if up := later.Truncate(rest); up.Before(later) {
				later = up.Add(rest)
			}
			wait = later.Sub(now.Round(0))
		}
		return n, wait
	}
	return n, 0
}

// next takes what is to be sent now and puts in what follows it, or returns how
// long there is nothing to send.
func (a *Announcer) next(now time.Time) (entry, time.Duration, bool) {
	const idle = time.Hour // a poke ends it
	e, wait, ok := a.due.take(now, idle)
	if !ok {
		return entry{}, wait, false
	}
	if follows, more := a.after(e, now); more {
		a.due.put(follows)
	}
	return e, 0, true
}

// after returns what follows e: the reply after the request of a new address,
// its next round soon, then refreshes for as long as the address is kept. A
// refresh is for the switches; the request does, and has no node learn anything.
func (a *Announcer) after(e entry, now time.Time) (entry, bool) {
	follows := entry{target: e.target, form: firstForm(e.target), left: e.left}
	switch {
	case e.fresh() && e.form == formRequest:
		follows.form, follows.at = formReply, now
		return follows, true
	case e.left > 1:
		follows.left, follows.at = e.left-1, now.Add(a.o.Interval)
		return follows, true
	}
	// It may have to wait for others, and is not to be late.
	follows.left, follows.at = 0, now.Add(a.o.Refresh-min(requestsRest, a.o.Refresh/2))
	return follows, a.kept[e.target]
}

func firstForm(t Target) form {
	if t.IP.Is4() {
		return formRequest
	}
	return formAdvert
}

func (a *Announcer) forget(t Target, err error) {
	a.mu.Lock()
	kept := a.kept[t]
	a.due.drop(t)
	if kept {
		a.due.put(entry{target: t, form: firstForm(t), at: time.Now().Add(a.o.Refresh)})
	}
	a.mu.Unlock()
	a.o.Log.Warn("announcement failed", "dev", t.Dev, "ip", t.IP.String(), "err", err)
}

// Close releases the socket. Run does that too.
func (a *Announcer) Close() error {
	err := io.ErrClosedPipe
	a.closing.Do(func() { err = unix.Close(a.out.fd) })
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
