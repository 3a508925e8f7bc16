// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"container/heap"
	"time"
)

// form is how an announcement is made.
type form int

const (
	formRequest form = iota // gratuitous ARP request
	formReply               // gratuitous ARP reply
	formAdvert              // unsolicited neighbour advertisement
)

// entry is the next announcement of a target. There is at most one for each.
type entry struct {
	target Target
	at     time.Time
	form   form
	left   int // rounds of a new address that are still to come, this one included
}

// fresh tells announcements of new addresses from refreshes.
func (e entry) fresh() bool { return e.left > 0 }

// schedule holds the entries in two queues. Requests change nothing for an OVN
// node that knows the address, or does not know it, and so are not metered
// there; what it may learn from is (25 a second), and answers to its own
// questions with it.
type schedule struct {
	requests, learned queue
	index             map[Target]bool
}

func newSchedule(o Options, now time.Time) schedule {
	together := int(requestsRest * time.Duration(o.Requests) / time.Second)
	return schedule{
		requests: queue{pace: newPacer(o.Requests, max(o.Burst, together), now)},
		learned:  queue{pace: newPacer(o.PerSecond, o.Burst, now)},
		index:    make(map[Target]bool),
	}
}

// put adds e, or replaces the entry of the same target.
func (s *schedule) put(e entry) {
	if s.index[e.target] {
		s.drop(e.target)
	}
	s.index[e.target] = true
	q := &s.learned
	if e.form == formRequest {
		q = &s.requests
	}
	if e.fresh() {
		heap.Push(&q.fresh, e)
	} else {
		heap.Push(&q.refresh, e)
	}
}

// anyFresh tells whether anything is queued that is no refresh.
func (s *schedule) anyFresh() bool { return len(s.requests.fresh)+len(s.learned.fresh) > 0 }

func (s *schedule) has(t Target) bool { return s.index[t] }

// take removes and returns an entry to be sent now. If there is none, it
// returns how long it is until there will be, and idle if there never will.
func (s *schedule) take(now time.Time, idle time.Duration) (entry, time.Duration, bool) {
	wait := idle
	for _, q := range []*queue{&s.requests, &s.learned} {
		e, left, ok := q.take(now, idle)
		if ok {
			delete(s.index, e.target)
			return e, 0, true
		}
		wait = min(wait, left)
	}
	return entry{}, wait, false
}

func (s *schedule) drop(t Target) { s.keep(func(o Target) bool { return o != t }) }

// keep drops the entries of all targets that ok refuses.
func (s *schedule) keep(ok func(Target) bool) {
	for _, h := range []*entries{&s.requests.fresh, &s.requests.refresh, &s.learned.fresh, &s.learned.refresh} {
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

// queue holds entries that share a pace. Those of new addresses go ahead of any
// refresh.
type queue struct {
	pace           *pacer
	fresh, refresh entries
}

func (q *queue) take(now time.Time, idle time.Duration) (entry, time.Duration, bool) {
	wait := idle
	for _, h := range []*entries{&q.fresh, &q.refresh} {
		if len(*h) == 0 {
			continue
		}
		if left := (*h)[0].at.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		if paced := q.pace.wait(now); paced > 0 {
			return entry{}, paced, false
		}
		q.pace.spend()
		return heap.Pop(h).(entry), 0, true
	}
	return entry{}, wait, false
}

// entries is a heap: by rounds, so that each new address is announced once
// before any is announced again, then by time.
type entries []entry

func (e entries) Len() int      { return len(e) }
func (e entries) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e entries) Less(i, j int) bool {
	if e[i].left != e[j].left {
		return e[i].left > e[j].left
	}
	return e[i].at.Before(e[j].at)
}
func (e *entries) Push(x any) { *e = append(*e, x.(entry)) }
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

// wakeSlack is the part of a packet that may be missing: whoever wakes a little
// early sends what the pace allows all the same, and the next one waits longer.
const wakeSlack = 0.1

// wait returns how long it takes until something may be sent.
func (p *pacer) wait(now time.Time) time.Duration {
	p.tokens = min(p.burst, p.tokens+float64(now.Sub(p.last))/float64(p.every))
	p.last = now
	if p.tokens >= 1-wakeSlack {
		return 0
	}
	return time.Duration((1-p.tokens)*float64(p.every)) + time.Microsecond
}

func (p *pacer) spend() { p.tokens-- }
