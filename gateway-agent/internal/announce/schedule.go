// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"container/heap"
	"time"
)

// entry is the next announcement of a target. There is at most one for each.
type entry struct {
	target Target
	at     time.Time
	second bool // the second form of the pair is next
	left   int  // pairs of a new address that are still to come, this one included
}

// fresh tells announcements of new addresses from refreshes.
func (e entry) fresh() bool { return e.left > 0 }

// schedule holds the entries by time, those of new addresses apart: due ones
// go ahead of any refresh. The zero value is an empty one.
type schedule struct {
	fresh, refresh entries
	index          map[Target]bool
}

// put adds e, or replaces the entry of the same target.
func (s *schedule) put(e entry) {
	if s.index == nil {
		s.index = make(map[Target]bool)
	}
	if s.index[e.target] {
		s.drop(e.target)
	}
	s.index[e.target] = true
	if e.fresh() {
		heap.Push(&s.fresh, e)
	} else {
		heap.Push(&s.refresh, e)
	}
}

func (s *schedule) has(t Target) bool { return s.index[t] }

// take removes and returns the entry to be sent now. If there is none, it
// returns how long it is until there will be, and idle if there never will.
func (s *schedule) take(now time.Time, idle time.Duration) (entry, time.Duration, bool) {
	wait := idle
	for _, h := range []*entries{&s.fresh, &s.refresh} {
		if len(*h) == 0 {
			continue
		}
		if left := (*h)[0].at.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		e := heap.Pop(h).(entry)
		delete(s.index, e.target)
		return e, 0, true
	}
	return entry{}, wait, false
}

func (s *schedule) drop(t Target) { s.keep(func(o Target) bool { return o != t }) }

// keep drops the entries of all targets that ok refuses.
func (s *schedule) keep(ok func(Target) bool) {
	for _, h := range []*entries{&s.fresh, &s.refresh} {
		left := (*h)[:0]
		for _, e := range *h {
			if ok(e.target) {
				left = append(left, e)
			} else {
				delete(s.index, e.target)
			}
		}
		*h = left
		heap.Init(h)
	}
}

// entries is a heap by time.
type entries []entry

func (e entries) Len() int           { return len(e) }
func (e entries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e entries) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e *entries) Push(x any)        { *e = append(*e, x.(entry)) }
func (e *entries) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

// pacer is a token bucket.
type pacer struct {
	every         time.Duration
	burst, tokens float64
	last          time.Time
}

func newPacer(perSecond, burst int, now time.Time) *pacer {
	return &pacer{every: time.Second / time.Duration(perSecond), burst: float64(burst), tokens: float64(burst), last: now}
}

// wait returns how long it takes until something may be sent.
func (p *pacer) wait(now time.Time) time.Duration {
	p.tokens = min(p.burst, p.tokens+float64(now.Sub(p.last))/float64(p.every))
	p.last = now
	if p.tokens >= 1 {
		return 0
	}
	return time.Duration((1-p.tokens)*float64(p.every)) + time.Microsecond
}

func (p *pacer) spend() { p.tokens-- }
