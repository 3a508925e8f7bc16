// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strconv"

	"egress-gateway.io/shared/bus"
)

// verifier looks at the audit's events in their order.
type verifier struct {
	events int
	last   uint64 // stream sequence
	ids    map[string]uint64
	boots  map[boot]*numbers
	order  []boot
	found  []string
}

// boot is one life of a process.
type boot struct{ source, id string }

// numbers are those that a process gave its events. They begin with 1.
type numbers struct {
	first, last uint64 // in the stream; 0 if none is
	known       map[uint64]bool
}

func newVerifier() *verifier {
	return &verifier{ids: map[string]uint64{}, boots: map[boot]*numbers{}}
}

func (v *verifier) find(format string, args ...any) {
	v.found = append(v.found, fmt.Sprintf(format, args...))
}

func (v *verifier) see(e bus.AuditEvent) {
	v.events++
	if v.last != 0 && e.NatsSequence != v.last+1 {
		v.find("removed: the stream lacks the messages %d to %d", v.last+1, e.NatsSequence-1)
	}
	v.last = e.NatsSequence
	if err := e.Genuine(); err != nil {
		v.find("forged: message %d: %v", e.NatsSequence, err)
		return
	}
	if before, twice := v.ids[e.ID]; twice {
		v.find("doubled: message %d repeats %d (id %s)", e.NatsSequence, before, e.ID)
	}
	v.ids[e.ID] = e.NatsSequence
	if e.Kind == "gap" {
		v.find("lost: %s says that its spool dropped events: %s", e.Source, e.Data)
	}
	if e.Kind == bus.KindRepeated {
		v.repeat(e)
	}
	n, err := strconv.ParseUint(e.Sequence, 10, 64)
	if err != nil || e.BootID == "" {
		v.find("forged: message %d has no number of its process", e.NatsSequence)
		return
	}
	p := v.of(boot{e.Source, e.BootID})
	if p.last == 0 {
		p.first = n
	}
	p.first, p.last = min(p.first, n), max(p.last, n)
	p.known[n] = true
}

// repeat takes the word of a process for events that NATS had already.
func (v *verifier) repeat(e bus.AuditEvent) {
	list, err := bus.DecodeRepeated(e.Data)
	if err != nil {
		v.find("forged: message %d: %v", e.NatsSequence, err)
	}
	for _, r := range list {
		p := v.of(boot{e.Source, r.BootID})
		for n := r.First; n <= r.Last; n++ {
			p.known[n] = true
		}
	}
}

func (v *verifier) of(b boot) *numbers {
	p := v.boots[b]
	if p == nil {
		p = &numbers{known: map[uint64]bool{}}
		v.boots[b] = p
		v.order = append(v.order, b)
	}
	return p
}

// missing counts the numbers between the first and the last event that neither
// stand in the stream nor were told before.
func (p *numbers) missing() uint64 {
	if p.last == 0 {
		return 0
	}
	n := p.last - p.first + 1
	for k := range p.known {
		if p.first <= k && k <= p.last {
			n--
		}
	}
	return n
}

// processes counts those of which the stream holds events.
func (v *verifier) processes() int {
	n := 0
	for _, p := range v.boots {
		if p.last > 0 {
			n++
		}
	}
	return n
}

// findings returns what is wrong, one line each. What a process told before the
// oldest event that is kept is not missed.
func (v *verifier) findings() []string {
	out := slices.Clone(v.found)
	for _, b := range v.order {
		p := v.boots[b]
		if missing := p.missing(); missing > 0 {
			out = append(out, fmt.Sprintf("missing: %d of the events %d to %d of %s (process %s)",
				missing, p.first, p.last, b.source, b.id))
		}
	}
	return out
}
