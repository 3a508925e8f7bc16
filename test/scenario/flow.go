// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// FlowResult is what one long-lived flow went through.
type FlowResult struct {
	Sent, Answered int
	// Refused counts sends that the kernel failed because an ICMP error came back.
	Refused int
	// Sources counts the answers by the source address that the server saw.
	Sources map[netip.Addr]int
	// LongestGap is the longest time between the sending of two answered
	// packets that follow each other; it is at least the sending interval.
	LongestGap time.Duration
	// Slowest is the longest time from the sending of a packet to its answer.
	Slowest time.Duration
	// Outages are the times in which no packet got through, first to last packet
	// lost and one interval more. Only Stop fills them in.
	Outages []Outage
	// Err ended the flow early.
	Err error
}

// Outage is a time in which a flow was interrupted: packet after packet was lost
// or refused.
type Outage struct {
	From, To time.Time
	// Lost are the packets in it that were sent and never answered. What the
	// kernel of the sender refused, because of an ICMP error, is not among them.
	Lost int
}

// Duration is how long it lasted.
func (o Outage) Duration() time.Duration { return o.To.Sub(o.From) }

// Lost is the number of packets that were never answered.
func (r FlowResult) Lost() int { return r.Sent - r.Answered }

// Flow is a running flow. Stop ends it and says what it went through.
type Flow struct {
	cancel context.CancelFunc
	conn   net.Conn
	wg     sync.WaitGroup

	interval time.Duration

	mu     sync.Mutex
	result FlowResult
	sentAt map[uint64]time.Time // of packets that are not answered
	failAt map[uint64]time.Time // of packets that could not be sent
	last   time.Time            // when the latest answered packet was sent
	news   chan struct{}
}

// StartUDP sends a numbered packet to the UDP echo server on conn every
// interval. Errors of single packets are counted, not fatal.
func StartUDP(ctx context.Context, conn net.Conn, interval time.Duration) *Flow {
	return start(ctx, conn, interval, (*Flow).readUDP, func(err error) bool { return false })
}

// StartTCP does the same over one TCP connection to the echo server, whose
// source can not be seen. Any error ends the flow.
func StartTCP(ctx context.Context, conn net.Conn, interval time.Duration) *Flow {
	return start(ctx, conn, interval, (*Flow).readTCP, func(err error) bool { return true })
}

func start(ctx context.Context, conn net.Conn, interval time.Duration, read func(*Flow), fatal func(error) bool) *Flow {
	ctx, cancel := context.WithCancel(ctx)
	f := &Flow{cancel: cancel, conn: conn, interval: interval, sentAt: map[uint64]time.Time{}, failAt: map[uint64]time.Time{}, news: make(chan struct{}, 1),
		result: FlowResult{Sources: map[netip.Addr]int{}}}
	f.wg.Go(func() { f.send(ctx, interval, fatal) })
	f.wg.Go(func() { read(f) })
	return f
}

func (f *Flow) send(ctx context.Context, interval time.Duration, fatal func(error) bool) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := uint64(0); ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.mu.Lock()
		f.sentAt[n] = time.Now()
		f.result.Sent++
		f.mu.Unlock()
		_, err := f.conn.Write(binary.BigEndian.AppendUint64(nil, n))
		if err != nil && f.failed(err, n, fatal(err)) {
			return
		}
	}
}

// failed books a send that the kernel refused; it tells whether the flow ends.
func (f *Flow) failed(err error, n uint64, fatal bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(err, net.ErrClosed) {
		// Stop overtook this packet, which was not sent.
		f.result.Sent--
		delete(f.sentAt, n)
		return true
	}
	if fatal {
		if f.result.Err == nil {
			f.result.Err = err
		}
		return true
	}
	// The error belongs to an earlier packet, and this one was not sent.
	f.result.Refused++
	f.result.Sent--
	f.failAt[n] = f.sentAt[n]
	delete(f.sentAt, n)
	return false
}

func (f *Flow) readUDP() {
	buf := make([]byte, 2048)
	for {
		n, err := f.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			f.mu.Lock()
			f.result.Refused++
			f.mu.Unlock()
			continue
		}
		from, payload, ok := bytes.Cut(buf[:n], []byte(" "))
		source, err := netip.ParseAddrPort(string(from))
		if !ok || err != nil || len(payload) != 8 {
			continue
		}
		f.answered(binary.BigEndian.Uint64(payload), source.Addr())
	}
}

func (f *Flow) readTCP() {
	buf := make([]byte, 8)
	for {
		if _, err := io.ReadFull(f.conn, buf); err != nil {
			f.mu.Lock()
			if f.result.Err == nil && !errors.Is(err, net.ErrClosed) {
				f.result.Err = err
			}
			f.mu.Unlock()
			return
		}
		f.answered(binary.BigEndian.Uint64(buf), netip.Addr{})
	}
}

func (f *Flow) answered(n uint64, source netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, ok := f.sentAt[n]
	if !ok {
		return // a duplicate
	}
	delete(f.sentAt, n)
	f.result.Answered++
	f.result.Sources[source]++
	f.result.Slowest = max(f.result.Slowest, time.Since(at))
	if !f.last.IsZero() {
		f.result.LongestGap = max(f.result.LongestGap, at.Sub(f.last))
	}
	f.last = at
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// Snapshot returns what has happened so far.
func (f *Flow) Snapshot() FlowResult {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.result
	r.Sources = make(map[netip.Addr]int, len(f.result.Sources))
	for a, n := range f.result.Sources {
		r.Sources[a] = n
	}
	return r
}

// WaitAnswers waits until n more packets than now have been answered.
func (f *Flow) WaitAnswers(ctx context.Context, n int) error {
	want := f.Snapshot().Answered + n
	for {
		r := f.Snapshot()
		if r.Answered >= want {
			return nil
		}
		if r.Err != nil {
			return fmt.Errorf("flow ended: %w", r.Err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %d answers, got %d: %w", n, r.Answered+n-want, ctx.Err())
		case <-f.news:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Stop ends the flow. Answers that are on their way get half a second; a
// packet that is still unanswered then is lost.
func (f *Flow) Stop() FlowResult {
	f.cancel()
	deadline := time.Now().Add(500 * time.Millisecond)
	for time.Now().Before(deadline) && f.outstanding() > 0 {
		select {
		case <-f.news:
		case <-time.After(10 * time.Millisecond):
		}
	}
	_ = f.conn.Close()
	f.wg.Wait()
	f.mu.Lock()
	f.result.Outages = outages(f.sentAt, f.failAt, f.interval)
	f.mu.Unlock()
	return f.Snapshot()
}

// outages joins packets that follow each other and did not get through.
func outages(lost, failed map[uint64]time.Time, interval time.Duration) []Outage {
	all := maps.Clone(lost)
	maps.Copy(all, failed)
	var out []Outage
	var last uint64
	for i, n := range slices.Sorted(maps.Keys(all)) {
		if i == 0 || n != last+1 {
			out = append(out, Outage{From: all[n]})
		}
		o := &out[len(out)-1]
		o.To, last = all[n].Add(interval), n
		if _, sent := lost[n]; sent {
			o.Lost++
		}
	}
	return out
}

func (f *Flow) outstanding() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.result.Err != nil {
		return 0
	}
	return len(f.sentAt)
}
