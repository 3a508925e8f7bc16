// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"egress-gateway.io/shared/tenant"
)

// Options are what a Loop works with. All fields but Metrics are required.
type Options struct {
	ClusterName string
	Cluster     Cluster
	Bus         Bus
	Audit       Audit
	Log         *slog.Logger
	Clock       func() time.Time
	Metrics     *Metrics
}

// Loop makes things what they should be for as long as it runs. Make it with
// New; run it once.
type Loop struct {
	Options
	poke    chan struct{}
	ledgers *ledgers
	sync    *syncer
	beat    heartbeat

	// What follows belongs to the goroutine of Run.
	upSince  time.Time // of the connection to NATS; zero without one
	nodes    map[string]tenant.Node
	gateways liveness
	last     map[string]tenant.Tenant // what the bus was told
	held     map[string]holding       // what the tenants held in the last pass
	reported map[string]bool          // problems that were told
	failures int
}

const (
	// coalesce is how long a pass waits for further events after the first.
	coalesce = 3 * time.Millisecond
	// resync is how often everything is looked at without any event.
	resync = 5 * time.Minute
	// silence is after how long an unchanged report means a dead gateway.
	silence = time.Minute
	// minRest is how long a released address rests at least: time for the
	// gateways to be told and to answer.
	minRest = 5 * time.Second
	// minRouteRest is the same for a gateway IP. Nothing tells when the last node
	// has dropped its route to it, and a pod that follows an old route to the
	// gateway IP of a new tenant leaves with that tenant's address. After an
	// outage of the API server, nodes hear of changes up to a minute late: so
	// long may client-go wait before it watches again.
	minRouteRest = 2 * time.Minute
	// retryMin and retryMax bound the wait after a pass that failed.
	retryMin = 200 * time.Millisecond
	retryMax = 15 * time.Second
)

// New returns a loop that has not begun.
func New(o Options) *Loop {
	l := &Loop{
		Options: o, poke: make(chan struct{}, 1), ledgers: newLedgers(o.Cluster),
		nodes: map[string]tenant.Node{}, gateways: liveness{}, last: map[string]tenant.Tenant{},
		held: map[string]holding{}, reported: map[string]bool{},
	}
	l.sync = newSyncer(o, l.Poke)
	return l
}

// Poke says that something may have changed. It never blocks.
func (l *Loop) Poke() {
	select {
	case l.poke <- struct{}{}:
	default: // a pass is due anyway
	}
}

// Resync has the bus written again although nothing has changed.
func (l *Loop) Resync() { l.sync.force() }

// Run makes passes until ctx ends, and then returns nil. Nothing of a pass
// depends on NATS: what the gateways should know is handed to a goroutine of
// its own.
func (l *Loop) Run(ctx context.Context) error {
	forced := l.Clock()
	done := make(chan struct{})
	go func() { defer close(done); l.sync.run(ctx) }()
	defer func() { <-done }()
	defer l.Metrics.Show(nil)
	l.Poke()
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.poke:
			if !pause(ctx, coalesce) {
				return nil
			}
			l.drain()
		case <-wake.C:
		}
		if now := l.Clock(); now.Sub(forced) >= resync {
			forced = now
			l.sync.force()
		}
		wake.Reset(l.turn(ctx))
	}
}

// drain forgets a poke that came while the pass was waiting to begin.
func (l *Loop) drain() {
	select {
	case <-l.poke:
	default:
	}
}

// turn makes one pass and returns when to make the next one at the latest.
func (l *Loop) turn(ctx context.Context) time.Duration {
	begin := l.Clock()
	p, err := l.pass(ctx)
	now := l.Clock()
	l.beat.set(now)
	l.Metrics.Pass(now.Sub(begin))
	next := resync
	if p != nil && !p.wake.IsZero() {
		next = min(next, max(p.wake.Sub(now), 0))
	}
	switch {
	case err == nil:
		l.failures = 0
	case ctx.Err() != nil:
		return next
	default:
		l.failures++
		next = min(next, retryMin<<min(l.failures-1, 10), retryMax)
		l.logFailure(err, next)
	}
	if p != nil && p.again {
		l.Poke()
	}
	return next
}

// logFailure says little of conflicts: another leader that lingers, or an
// edit by hand, and the next pass sees it.
func (l *Loop) logFailure(err error, next time.Duration) {
	level := slog.LevelWarn
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		level = slog.LevelInfo
	}
	l.Log.Log(context.Background(), level, "pass incomplete; trying again", "err", err, "in", next)
}

// Turning returns nil as long as the loop makes passes; for /livez.
func (l *Loop) Turning() error {
	const limit = 2*resync + transaction
	if t := l.beat.get(); !t.IsZero() && l.Clock().Sub(t) > limit {
		return errors.New("the loop has made no pass since " + t.UTC().Format(time.RFC3339))
	}
	return nil
}

// Behind returns for how long the gateways have not been told the latest state;
// 0 if they have.
func (l *Loop) Behind() time.Duration { return l.sync.behind() }

// pause waits for d and says whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
