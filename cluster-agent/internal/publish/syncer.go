// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"egress-gateway.io/shared/tenant"
)

// syncer hands the latest state to the bus, in a goroutine of its own, so that
// NATS can be slow or away without delaying anything else.
type syncer struct {
	bus     Bus
	log     *slog.Logger
	clock   func() time.Time
	metrics *Metrics
	poke    func() // tells the loop that the bus has caught up
	kick    chan struct{}

	mu     sync.Mutex
	state  *State    // the latest; nil until the first
	synced bool      // the bus holds state
	since  time.Time // when it no longer did
}

const (
	syncTimeout = 30 * time.Second
	syncRetry   = time.Second
)

func newSyncer(o Options, poke func()) *syncer {
	return &syncer{bus: o.Bus, log: o.Log, clock: o.Clock, metrics: o.Metrics, poke: poke, kick: make(chan struct{}, 1), since: o.Clock()}
}

// set gives the syncer a new state; an equal one changes nothing.
func (s *syncer) set(state State) {
	s.mu.Lock()
	same := s.state != nil && sameState(*s.state, state)
	if !same {
		s.state = &state
		s.due()
	}
	s.mu.Unlock()
	if !same {
		s.wake()
	}
}

// force has the latest state written again.
func (s *syncer) force() {
	s.mu.Lock()
	s.due()
	s.mu.Unlock()
	s.wake()
}

// due makes the state to be written. The caller holds mu.
func (s *syncer) due() {
	if s.synced {
		s.since = s.clock()
	}
	s.synced = false
}

// behind returns for how long the bus has not held the latest state.
func (s *syncer) behind() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.synced {
		return 0
	}
	return max(s.clock().Sub(s.since), 0)
}

func (s *syncer) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// caughtUp says whether the bus holds the latest state.
func (s *syncer) caughtUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

func (s *syncer) run(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kick:
		case <-retry.C:
		}
		retry.Stop()
		err := s.once(ctx)
		if err != nil && ctx.Err() == nil {
			s.metrics.Failed(kindBus)
			retry.Reset(syncRetry)
			if !failing {
				s.log.Warn("the gateways can not be told; trying again", "err", err, "step", "bus")
			}
		} else if failing {
			s.log.Info("the gateways are told again", "step", "bus")
		}
		failing = err != nil
	}
}

// once writes the latest state unless the bus holds it.
func (s *syncer) once(ctx context.Context) error {
	s.mu.Lock()
	state, synced := s.state, s.synced
	s.mu.Unlock()
	if state == nil || synced {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if err := s.bus.Sync(ctx, *state); err != nil {
		return err
	}
	s.mu.Lock()
	s.synced = s.state == state
	s.mu.Unlock()
	s.poke()
	return nil
}

// sameState compares tenants by what identifies their content.
func sameState(a, b State) bool {
	tenants := slices.EqualFunc(a.Tenants, b.Tenants, func(x, y tenant.Tenant) bool {
		return x.Name == y.Name && x.UID == y.UID && x.Generation == y.Generation
	})
	return tenants && slices.EqualFunc(a.Nodes, b.Nodes, func(x, y tenant.Node) bool {
		return x.Name == y.Name && slices.Equal(x.Subnets, y.Subnets) && slices.Equal(x.Addresses, y.Addresses)
	})
}

// heartbeat holds a time that any goroutine may read.
type heartbeat struct{ nanos atomic.Int64 }

func (h *heartbeat) set(t time.Time) { h.nanos.Store(t.UnixNano()) }

func (h *heartbeat) get() time.Time {
	n := h.nanos.Load()
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
