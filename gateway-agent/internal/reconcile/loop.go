// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/rhythm"
	"egress-gateway.io/shared/tenant"
)

// Delays of the loop.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// confirmPoll is how often the loop looks for a request of the operator.
	confirmPoll = 2 * time.Second
	// stopGrace is how long a pass that has begun may go on after a stop: a
	// pass that is cut short is safe, but one that is complete is better.
	stopGrace = 3 * time.Second
)

// Options of a Loop. All fields are required but OnPass, Prober and Spills.
type Options struct {
	Gateway, Group string
	Resync         time.Duration
	Clock          func() time.Time
	Log            *slog.Logger

	Store     *Store
	Kernel    Kernel
	Flows     Flows
	Announcer Announcer
	Audit     Audit
	// Prober is nil if addresses are claimed without asking.
	Prober Prober
	// Views returns what the bus shows now, by cluster.
	Views func() map[string]View
	// Trouble returns what is wrong with the bus itself, to be reported.
	Trouble func() []plan.Problem
	// Spills returns the exceptions for addresses whose ports are used up.
	Spills func() []plan.Spill
	// Sweep is told to look for untranslated connections after an announcement.
	Sweep func()
	// OnPass is told about each pass, for metrics.
	OnPass func(Pass)
}

// Pass tells what one pass did.
type Pass struct {
	Began    time.Time
	Duration time.Duration
	Steps    int
	Kind     string // PassWhole, PassPart or PassNone; empty if the kernel could not be read
	// Failed counts what failed, by what it concerns: one of the Failed... kinds.
	Failed map[string]int
	Err    error // ended the whole pass
}

// What a failure concerns.
const (
	FailedRead   = "read"   // the kernel could not be read: the pass ended
	FailedHost   = "host"   // something that all tenants depend on
	FailedTenant = "tenant" // one tenant
	FailedOther  = "other"  // a route, a leftover, the disk copy, an address in use elsewhere
)

// Kinds returns all kinds of failures.
func Kinds() []string { return []string{FailedRead, FailedHost, FailedTenant, FailedOther} }

// Loop brings the kernel to what the bus, or the memory, asks for. Only Snapshot
// is safe for concurrent use.
type Loop struct {
	Options
	memory   Memory         // equals the disk copy
	altered  bool           // memory is not that of snapshot any more
	seen     seen           // what memory was merged from
	index    plan.Index     // of memory's tenants, as the last pass planned them
	onDisk   bool           // memory was read from, or written to, the disk
	damaged  []plan.Problem // of the disk copy, until the bus has told otherwise
	onLink   []netip.Prefix // of the internal NIC, when last seen
	statuses map[Ref]tenant.Status
	concerns map[Ref]bool // whose entries changed since statuses were made
	clear    bool         // nothing had failed then
	reported map[plan.Problem]bool
	answers  map[netip.Addr]answer // to probes
	free     map[netip.Addr]bool   // nobody answered for them during this pass
	planned  planned
	kept     map[plan.Addr]bool // what the announcer was given last
	freshness
	snapshot atomic.Pointer[Snapshot]
}

// NewLoop returns a loop that has not begun.
func NewLoop(o Options) *Loop {
	l := &Loop{Options: o, answers: map[netip.Addr]answer{}, free: map[netip.Addr]bool{}}
	l.begin(Memory{Clusters: map[string]Cluster{}})
	l.snapshot.Store(&Snapshot{})
	return l
}

// Run restores the memory from the disk, or from the kernel, and then makes a
// pass at once, whenever changed receives, at each resync, a moment after each
// change, and after a failure with a growing delay, until ctx ends. It returns
// an error only if the disk copy or the kernel can not be read at the start.
func (l *Loop) Run(ctx context.Context, changed <-chan struct{}) error {
	l.changed = changed
	if err := l.restore(ctx); err != nil {
		return err
	}
	resync := time.NewTicker(l.Resync)
	defer resync.Stop()
	poll := time.NewTicker(rhythm.Until(time.Now(), confirmPoll, 0))
	defer poll.Stop()
	delay := firstRetry
	var again <-chan time.Time
	for {
		ok := l.passUnhurried(ctx)
		switch {
		case !ok:
			again = time.After(delay)
			delay = min(2*delay, lastRetry)
		default:
			again, delay = l.nextFresh(), firstRetry
		}
		if !l.wait(ctx, resync.C, again, poll) {
			return nil
		}
	}
}

// wait returns true when it is time for a pass, false when ctx has ended.
func (l *Loop) wait(ctx context.Context, resync, again <-chan time.Time, poll *time.Ticker) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-l.changed:
			return true
		case <-resync:
			return true
		case <-again:
			l.due = true
			return true
		case <-poll.C:
			poll.Reset(rhythm.Until(time.Now(), confirmPoll, 0))
			if l.Store.ConfirmPending() {
				return true
			}
		}
	}
}

// passUnhurried makes a pass that a stop does not cut short at once. It reports
// whether all went well.
func (l *Loop) passUnhurried(ctx context.Context) bool {
	detached, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(stopGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-detached.Done():
		}
	})
	defer stop()
	return l.pass(detached)
}

// restore fills the memory: from the disk, else from what the kernel holds.
func (l *Loop) restore(ctx context.Context) error {
	loaded, err := l.Store.SetAside(l.Clock())
	if err != nil {
		return err
	}
	l.onDisk, l.damaged = loaded.Found, loaded.Problems
	l.begin(loaded.Memory)
	if loaded.Corrupt != nil {
		l.Log.Error("THE DISK COPY IS CORRUPT; what the kernel holds is adopted, and nothing is torn down until the bus confirms it",
			"err", loaded.Corrupt, "kept", loaded.Aside)
		l.damaged = append(l.damaged, plan.Problem{Reason: "StateCorrupt",
			Message: fmt.Sprintf("the disk copy could not be used (%v); it was kept as %s", loaded.Corrupt, loaded.Aside)})
	}
	if loaded.Found {
		l.Log.Info("restored from disk", "tenants", len(l.memory.Refs()), "clusters", len(l.memory.Clusters))
		return nil
	}
	sight, err := l.Kernel.Look(ctx, true)
	if err != nil {
		return fmt.Errorf("observe the kernel: %w", err)
	}
	l.begin(Adopt(sight.State, sight.Host, l.Group))
	l.Log.Info("no disk copy", "adopted", len(l.memory.Refs()))
	return nil
}

// begin makes m the memory.
func (l *Loop) begin(m Memory) {
	l.memory, l.altered, l.index = m, true, plan.Index{}
	l.concerns, l.clear = map[Ref]bool{}, false
	for _, t := range tenantsOf(m) {
		l.index.Set(plan.TenantID(t.Cluster, t.Name), &t)
	}
}
