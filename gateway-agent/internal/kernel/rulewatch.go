// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/shared/rhythm"
)

const (
	// rulesEvery is how often the number of the ruleset is asked for. To be told of
	// each transaction would have the kernel write notices of all that is in it,
	// thousands of rules at the start. Announcements wake the agent every other time.
	rulesEvery = 250 * time.Millisecond
	// rulesPause is the least time between two reports, rulesShare how many times
	// as long as the last look at all rules took: others may change theirs all the
	// time.
	rulesPause = time.Second
	rulesShare = 20
)

// ruleWatch is what the loop and the watch over the rules share.
type ruleWatch struct {
	sockets map[int]*nl.SocketHandle // the watch's own
	busy    atomic.Bool              // a Look or an Apply is under way
	known   atomic.Bool              // generation is set
	// generation is that of the last look, and of the steps since.
	generation atomic.Uint32
	took       atomic.Int64 // nanoseconds: the last look at all rules
}

func openRuleWatch() (*ruleWatch, error) {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	return &ruleWatch{sockets: map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: socket}}}, socket.SetReceiveTimeout(&nl.SocketTimeoutTv)
}

// begin notes that a Look or an Apply is under way, until the function that it
// returns is called.
func (w *ruleWatch) begin() (end func()) {
	w.busy.Store(true)
	return func() { w.busy.Store(false) }
}

// looked notes a look at the rules, with their generation as it began.
func (w *ruleWatch) looked(generation uint32, known bool) {
	w.generation.Store(generation)
	w.known.Store(known)
}

// followed notes that the agent itself has led from one generation to another.
func (w *ruleWatch) followed(before, after uint32) { w.generation.CompareAndSwap(before, after) }

// changed tells whether somebody else has changed rules since the last look. It
// does not know while a Look or an Apply is under way.
func (w *ruleWatch) changed() (bool, error) {
	for range 2 { // an Apply may have ended between the two questions
		if !w.known.Load() || w.busy.Load() {
			return false, nil
		}
		now, err := rulesGeneration(w.sockets)
		if err != nil || now == w.generation.Load() {
			return false, err
		}
	}
	return !w.busy.Load(), nil
}

// WatchRules calls report, from one goroutine, a moment after somebody else has
// changed rules that the kernel counts the changes of, until ctx ends: all of
// nftables, and those of iptables-nft. Safe for concurrent use with all other
// methods but Close.
func (k *Kernel) WatchRules(ctx context.Context, report func()) error {
	tick := time.NewTimer(rhythm.Until(time.Now(), rulesEvery, 0))
	defer tick.Stop()
	var next time.Time
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			now := time.Now()
			tick.Reset(rhythm.Until(now, rulesEvery, 0))
			if now.Before(next) {
				continue
			}
		}
		changed, err := k.rules.changed()
		if failed := err != nil; failed != failing {
			if failing = failed; failed {
				k.log.Warn("changes of the rules are seen at the next comparison only", "err", err)
			}
		}
		if changed {
			report()
			next = time.Now().Add(max(rulesPause, rulesShare*time.Duration(k.rules.took.Load())))
		}
	}
}
