// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"runtime/debug"
	"sync/atomic"

	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/daemon"
)

// How much garbage may gather before it is collected, in percent of what is in
// use (GOGC). A collection takes 20 to 40 ms of a processor with 4,000 tenants:
// it is seldom while nothing happens, but would be frequent in a row of changes.
const (
	garbageCalm = 30
	garbageBusy = 100
)

// heap keeps the agent small while nothing changes, and quick while something
// does.
type heap struct {
	due   *daemon.Trigger // for tidy
	fixed bool            // the operator has set GOGC, which stands
	calm  atomic.Bool     // a look at everything found nothing to do, and nothing was done since
	whole atomic.Bool     // a pass has looked at everything since tidy

	percent int // in force, 0 if it was not changed; tidy's own
}

func newHeap() *heap { return &heap{due: daemon.NewTrigger(), fixed: os.Getenv("GOGC") != ""} }

// passed takes note of a pass. It takes no time of the loop's.
func (h *heap) passed(p reconcile.Pass) {
	whole := p.Kind == reconcile.PassWhole
	calm := p.Steps == 0 && (whole || h.calm.Load())
	if whole {
		h.whole.Store(true)
	}
	if changed := h.calm.Swap(calm) != calm; changed || whole {
		h.due.Poke()
	}
}

// tidy does what is due. A pass that looked at everything leaves tens of MiB
// behind: they are given back at once, as the next change is not to meet their
// collection.
func (h *heap) tidy() {
	percent := garbageBusy
	if h.calm.Load() {
		percent = garbageCalm
	}
	if !h.fixed && percent != h.percent {
		debug.SetGCPercent(percent)
		h.percent = percent
	}
	if h.whole.Swap(false) {
		debug.FreeOSMemory()
	}
}
