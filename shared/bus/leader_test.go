// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// crowd is a cluster-agent and a gateway-agent's ends of the bus under constant
// change, and a record of all that was ever wanted.
type crowd struct {
	t        *testing.T
	n        *natsCluster
	writer   *Writer
	follower *Follower
	status   *StatusWriter
	audit    *Audit

	mu     sync.Mutex
	wanted map[string]bool // states, by their tenants' names
	events int
	stop   context.CancelFunc
	done   sync.WaitGroup
}

const (
	coreTenants  = 5 // never removed
	guestTenants = 15
)

func startCrowd(t *testing.T, n *natsCluster) *crowd {
	t.Helper()
	ca, gw := n.connect("ca"), n.connect("gw1")
	c := &crowd{t: t, n: n, wanted: map[string]bool{},
		writer: startWriter(t, ca, "c1"), follower: startFollower(t, gw), status: startStatusWriter(t, gw, "gw1"),
		audit: startAudit(t, gw, t.TempDir(), 0),
	}
	c.sync(aState("c1", coreTenants))
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	t.Cleanup(func() { stop(); c.done.Wait() })
	c.done.Go(func() { c.change(ctx) })
	c.done.Go(func() { c.watch(ctx) })
	c.done.Go(func() { c.tell(ctx) })
	return c
}

// sync writes a state, for as long as that takes.
func (c *crowd) sync(s State) SyncResult {
	c.t.Helper()
	c.want(s)
	var res SyncResult
	var err error
	c.n.eventually("a sync", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		res, err = c.writer.Sync(ctx, s)
		return err == nil
	})
	return res
}

func (c *crowd) want(s State) {
	var names []string
	for _, t := range s.Tenants {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	c.mu.Lock()
	c.wanted[strings.Join(names, " ")] = true
	c.mu.Unlock()
}

// change adds and removes tenants all the time. A Sync that fails was not heard,
// or half: the next one mends that, as the agent's loop does.
func (c *crowd) change(ctx context.Context) {
	for ctx.Err() == nil {
		s := aState("c1", coreTenants)
		for i := coreTenants; i < coreTenants+guestTenants; i++ {
			if rand.IntN(2) == 0 {
				s.Tenants = append(s.Tenants, aTenant("c1", i, rand.Int64N(1000)+1))
			}
		}
		c.want(s)
		if _, err := c.writer.Sync(ctx, s); err == nil {
			_, err = c.status.Sync(ctx, report("gw1", len(s.Tenants), 1))
			_ = err // told again with the next change
		}
		wait(ctx, 20*time.Millisecond)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// watch holds each confirmed view against what was wanted.
func (c *crowd) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.follower.Changed():
		}
		view, known := c.follower.Views()["c1"]
		if !known {
			continue
		}
		names := strings.Join(slices.Sorted(maps.Keys(live(view))), " ")
		c.mu.Lock()
		if !c.wanted[names] {
			c.t.Errorf("a view that nobody ever wanted: %s", names)
		}
		c.mu.Unlock()
	}
}

// tell emits numbered events.
func (c *crowd) tell(ctx context.Context) {
	for ctx.Err() == nil {
		if err := c.audit.Emit(Event{Cluster: "c1", Kind: "tenant", Subject: fmt.Sprint(c.events)}); err != nil {
			c.t.Error(err)
		}
		c.events++
		wait(ctx, 5*time.Millisecond)
	}
}

// settle waits until changes arrive again, both ways.
func (c *crowd) settle(what string) {
	c.t.Helper()
	began := time.Now()
	before := c.follower.Views()["c1"].Ready.Generation
	c.n.eventually("changes to arrive after "+what, func() bool { return c.follower.Views()["c1"].Ready.Generation > before })
	c.t.Logf("%s: changes arrived %s later", what, time.Since(began).Round(time.Millisecond))
	c.n.eventually("events to be published after "+what, func() bool { return c.audit.Pending() < 100 })
}

// finish ends the changes, and checks that the last state arrives, the status
// too, and that each event is in the stream once, in order.
func (c *crowd) finish() {
	c.t.Helper()
	c.stop()
	c.done.Wait()
	last := aState("c1", coreTenants+3)
	res := c.sync(last)
	c.n.eventually("the last state", func() bool { return c.follower.Views()["c1"].Ready.Generation == res.Generation })
	if got := live(c.follower.Views()["c1"]); len(got) != coreTenants+3 {
		c.t.Errorf("in the end there are %v", got)
	}
	c.n.eventually("the last status", func() bool {
		_, err := c.status.Sync(within(c.t), report("gw1", 7, 9))
		return err == nil
	})
	c.n.eventually("all events to be published", func() bool { return c.audit.Pending() == 0 })
	sf := startStatusFollower(c.t, c.n.connect("reader"))
	c.n.eventually("the status of seven tenants", func() bool { return len(sf.Statuses("c1")) == 7 })
	c.judgeAudit()
}

func (c *crowd) judgeAudit() {
	c.t.Helper()
	ids := map[string]bool{}
	twice, disordered, next := 0, 0, 0
	err := ReadAudit(within(c.t), c.n.connect("auditor"), AuditFilter{}, func(e AuditEvent) error {
		if ids[e.ID] {
			twice++
			return nil
		}
		ids[e.ID] = true
		if e.Kind != "tenant" {
			return fmt.Errorf("event of kind %s: %s", e.Kind, e.Data)
		}
		if e.Subject != fmt.Sprint(next) {
			disordered++
		}
		next++
		return nil
	})
	if err != nil {
		c.t.Error(err)
	}
	if len(ids) != c.events || c.audit.Dropped() != 0 {
		c.t.Errorf("%d of %d events are in the stream, %d dropped", len(ids), c.events, c.audit.Dropped())
	}
	if twice > 0 || disordered > 0 {
		c.t.Errorf("%d events stand twice, %d out of order", twice, disordered)
	}
	c.t.Logf("%d events, each once, in order", c.events)
}

// A leader is killed, one is frozen, and then one server after the other is
// upgraded, while tenants come and go. The other leaders: see test/e2e.
func TestThreeServers(t *testing.T) {
	t.Parallel()
	n := startCluster(t)
	c := startCrowd(t, n)
	js := n.raw()
	s := n.leader(js, streamOf(StateBucket))
	n.signal(s, syscall.SIGKILL)
	c.settle("the leader of " + streamOf(StateBucket) + " was killed")
	n.start(s)
	n.settled(3)

	s = n.leader(js, AuditStream)
	n.signal(s, syscall.SIGSTOP)
	c.settle("the leader of " + AuditStream + " was frozen")
	n.signal(s, syscall.SIGCONT)
	n.settled(3)

	for _, s := range n.servers {
		n.signal(s, syscall.SIGTERM)
		c.settle(s.name + " was stopped")
		n.start(s)
		n.settled(3)
	}

	// One of three is no majority: nothing changes, and nothing is removed.
	n.signal(n.servers[0], syscall.SIGKILL)
	n.signal(n.servers[1], syscall.SIGKILL)
	n.eventually("the loss to be noticed", func() bool { return problem(c.follower.Problems(), "cut off") || c.audit.Pending() > 100 })
	before := len(live(c.follower.Views()["c1"]))
	wait(t.Context(), 2*time.Second)
	if now := len(live(c.follower.Views()["c1"])); now != before {
		t.Errorf("without a majority %d tenants became %d", before, now)
	}
	n.start(n.servers[0])
	n.start(n.servers[1])
	n.settled(3)
	c.settle("the majority was back")
	c.finish()
}

// A copy of the bucket that lags behind shows an old state, which is consistent
// in itself. A session that reads such a one does not count as loaded, and ends;
// but a last write that expired is not demanded for ever.
func TestLaggingCopy(t *testing.T) {
	t.Parallel()
	conn := startServer(t).connect("gw1")
	if _, err := conn.put(within(t), StateBucket, []write{{key: "a"}, {key: "b"}}, false); err != nil {
		t.Fatal(err)
	}
	stream := must(conn.stream(within(t), streamOf(StateBucket)))
	follow := func(w *watcher, info jetstream.StreamInfo) (target uint64, loaded bool, err error) {
		r := must(w.open(within(t), info.Created))
		defer r.close()
		r.mustReach(&info)
		ctx, cancel := context.WithTimeout(t.Context(), stallAfter+3*time.Second)
		defer cancel()
		loaded, err = w.follow(ctx, r, stream, make(chan struct{}))
		return r.target, loaded, err
	}
	info := *stream.CachedInfo()
	info.Config.Replicas = 3
	whole := newUntilLoaded(conn)
	if target, loaded, err := follow(whole, info); target != 2 || !loaded {
		t.Fatalf("target %d, loaded %t: %v", target, loaded, err)
	}
	lagging := newUntilLoaded(conn)
	info.State.LastSeq++ // as a leader with one more write would say
	for range maxLagging {
		if _, loaded, err := follow(lagging, info); loaded || !errors.Is(err, errLagging) {
			t.Fatalf("loaded %t: %v", loaded, err)
		}
	}
	if target, loaded, err := follow(lagging, info); target != 0 || !loaded {
		t.Fatalf("target %d, loaded %t: %v", target, loaded, err)
	}
}

// untilLoaded ends a session as soon as it has loaded.
type untilLoaded struct{ *watcher }

func newUntilLoaded(conn *Conn) *watcher {
	f := &untilLoaded{}
	f.watcher = newWatcher(conn, StateBucket, ">", quiet(), f)
	return f.watcher
}

func (untilLoaded) begin(incarnation) {}
func (untilLoaded) apply([]entry)     {}
func (f untilLoaded) loaded()         { f.refresh() }
func (untilLoaded) lost(error)        {}
func (untilLoaded) tick()             {}
