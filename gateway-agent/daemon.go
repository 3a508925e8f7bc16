// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"egress-gateway.io/gateway-agent/internal/announce"
	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
)

const (
	summaryEvery = 5 * time.Second
	checkEvery   = 30 * time.Second
	straysEvery  = 2 * time.Second
	flushTimeout = 2 * time.Second // for the last audit events
	// liveGrace is how much longer than the resync a pass may take before the
	// process counts as stuck.
	liveGrace = 2 * time.Minute
)

// runDaemon serves until a signal comes. The data path stays when it ends.
func runDaemon(c Config, args []string, stdout io.Writer) error {
	if err := noArgs(args); err != nil {
		return err
	}
	log, err := daemon.NewLogger(stdout, c.LogFormat, c.LogLevel)
	if err != nil {
		return err
	}
	log = log.With("gateway", c.Name)
	ctx, stop := daemon.SignalContext(context.Background())
	defer stop()

	store, unlock, unusable := openState(c.StateDir)
	if errors.Is(unusable, reconcile.ErrRunning) {
		return unusable
	}
	if unusable == nil {
		defer unlock()
	}
	k, err := kernel.New(c.host(), c.kernelOptions(log))
	if err != nil {
		return errors.Join(unusable, err)
	}
	defer k.Close()
	if err := preflight(ctx, c.StateDir, unusable, k, log); err != nil {
		return err
	}
	a, err := newAgent(ctx, c, log, store, k)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

// host is what the configuration says of the VM.
func (c Config) host() plan.Host {
	return plan.Host{Internal: c.InternalInterface, External: c.ExternalInterface, MarkMask: c.MarkMask, PodNetworks: c.PodNetworks}
}

func (c Config) kernelOptions(log *slog.Logger) kernel.Options {
	return kernel.Options{SysctlRoot: c.SysctlRoot, IPTables: c.IPTables, Log: log}
}

// agent holds the parts of the daemon, wired but not running.
type agent struct {
	config    Config
	log       *slog.Logger
	embedded  *embedded // nil unless a NATS server runs inside this agent
	kernel    *kernel.Kernel
	conn      *bus.Conn
	follower  *bus.Follower
	status    *bus.StatusWriter
	audit     *bus.Audit
	flows     *flows.Flows
	announcer announceAdapter
	loop      *reconcile.Loop
	sweeper   reconcile.Sweeper
	reporter  reconcile.Reporter
	ports     *reconcile.PortWatch
	strays    *reconcile.Strays
	claims    *reconcile.Claims
	server    *daemon.Server
	heap      *heap

	changed, sweep, report *daemon.Trigger
	stopping               atomic.Bool
}

// newAgent opens what the daemon needs. If it fails, the process ends, and what
// was opened ends with it.
func newAgent(ctx context.Context, c Config, log *slog.Logger, store *reconcile.Store, k *kernel.Kernel) (*agent, error) {
	a := &agent{config: c, log: log, kernel: k, changed: daemon.NewTrigger(), sweep: daemon.NewTrigger(), report: daemon.NewTrigger(), heap: newHeap()}
	var err error
	if a.flows, err = flows.Open(); err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	if a.announcer, err = newAnnouncer(log); err != nil {
		return nil, fmt.Errorf("announcements: %w", err)
	}
	version := daemon.Version()
	if err = a.connect(ctx, "gateway-agent "+version); err != nil {
		return nil, err
	}
	a.follower = bus.NewFollower(a.conn, bus.FollowerOptions{Reader: c.Name, Clock: time.Now, Log: log})
	a.status = bus.NewStatusWriter(a.conn, c.Name, bus.StatusOptions{Clock: time.Now, Log: log})
	a.audit, err = bus.NewAudit(a.conn, bus.AuditOptions{
		Dir: filepath.Join(c.StateDir, "audit"), Role: bus.RoleGateway, Name: c.Name, Clock: time.Now, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("audit spool: %w", err)
	}
	m, refused := newMetrics(), &older{}
	conns := countedFlows{flowsAdapter{a.flows}, m.flushed}
	checks := &laterChecks{kernel: k, every: checkEvery, log: log, load: func() (tenants, nodes int) { return loadOf(a.loop.Snapshot()) }}
	a.ports = &reconcile.PortWatch{
		Flows: portsAdapter{a.flows}, MarkMask: c.MarkMask, Ports: flows.Ports, Clock: time.Now, Log: log,
		Snapshot: func() *reconcile.Snapshot { return a.loop.Snapshot() }, Changed: a.changed.Poke,
	}
	a.claims = &reconcile.Claims{
		Announce: a.announcer.Announce, External: c.ExternalInterface, Counted: m.conflicts.Inc, Clock: time.Now, Log: log,
		Snapshot: func() *reconcile.Snapshot { return a.loop.Snapshot() }, Changed: a.changed.Poke,
	}
	a.strays = &reconcile.Strays{
		Every: straysEvery, Read: k.Strays, Numbers: flowsAdapter{a.flows}.numbers(c.MarkMask), Announce: a.announcer.Announce,
		Snapshot: func() *reconcile.Snapshot { return a.loop.Snapshot() }, Changed: a.changed.Poke, Log: log,
	}
	options := reconcile.Options{
		Gateway: c.Name, Group: c.Group, Resync: c.Resync, Clock: time.Now, Log: log,
		Store: store, Kernel: kernelAdapter{k}, Flows: conns, Announcer: a.announcer, Audit: auditAdapter{a.audit},
		Views: func() map[string]reconcile.View { return viewsOf(a.follower) },
		Trouble: func() []plan.Problem {
			return slices.Concat(checks.problems(ctx), a.embedded.problems(), a.strays.Problems(), a.claims.Problems(), troubleOf(a.follower), a.ports.View().Problems)
		},
		Spills: func() []plan.Spill { return a.ports.View().Spills },
		Sweep:  a.sweep.Poke,
		OnPass: func(p reconcile.Pass) {
			m.observe(p)
			a.heap.passed(p)
			refused.look(a.loop.Snapshot().Problems)
			a.report.Poke()
		},
	}
	if c.ProbeWait > 0 {
		options.Prober = prober{a.announcer.inside, c.ProbeWait}
	}
	a.loop = reconcile.NewLoop(options)
	a.sweeper = reconcile.Sweeper{Flows: conns, Audit: auditAdapter{a.audit}, Log: log, Snapshot: a.loop.Snapshot}
	a.reporter = reconcile.Reporter{
		Gateway: c.Name, Group: c.Group, Version: version, Every: summaryEvery, Clock: time.Now, Log: log,
		Snapshot: a.loop.Snapshot, Statuses: statusAdapter{a.status},
	}
	registry := prometheus.NewRegistry()
	m.register(registry, scraped{
		snapshot: a.loop.Snapshot, ports: a.ports.View, counters: k.Counters, tables: k.Tables,
		strays: a.strays.View, older: refused, bus: busFigures{a.conn, a.follower}, audit: a.audit,
	})
	a.server, err = daemon.Endpoints{Address: c.Listen, Live: a.live, Ready: a.ready, Registry: registry}.Listen()
	return a, err
}

// connect connects to NATS: to the server inside this agent, or to others.
func (a *agent) connect(ctx context.Context, version string) (err error) {
	if !a.config.NATSEmbedded {
		a.conn, err = bus.Connect(ctx, a.config.NATS, a.config.Name, a.log, bus.WithVersion(version))
		return err
	}
	if a.embedded, err = newEmbedded(a.config, a.log, a.changed.Poke); err != nil {
		return err
	}
	a.conn, err = a.embedded.connect(ctx, a.config.NATS, a.config.Name, bus.WithVersion(version))
	return err
}

// live fails if the loop does not turn over. NATS does not matter here.
func (a *agent) live() error {
	s := a.loop.Snapshot()
	if s.Pass.Began.IsZero() {
		return nil // the first pass is under way; its end is what ready waits for
	}
	if age := time.Since(s.Pass.Began); age > a.config.Resync+s.Pass.Duration+liveGrace {
		return fmt.Errorf("the last pass began %s ago", age.Round(time.Second))
	}
	return nil
}

// ready fails until there is a state to serve, from the disk or from NATS, and
// it was applied.
func (a *agent) ready() error {
	switch s := a.loop.Snapshot(); {
	case s.Pass.Began.IsZero():
		return errors.New("the first pass is not done")
	case s.Pass.Err != nil:
		return s.Pass.Err
	case !s.Known && len(a.embedded.problems()) > 0:
		return fmt.Errorf("no disk copy, and no state from NATS: %s", a.embedded.problems()[0].Message)
	case !s.Known:
		return errors.New("no disk copy, and no confirmed state from NATS yet")
	}
	return nil
}

// run serves until ctx ends.
func (a *agent) run(ctx context.Context) error {
	a.log.Info("starting", "version", daemon.Version(), "group", a.config.Group, "internal", a.config.InternalInterface,
		"external", a.config.ExternalInterface, "iptables", a.kernel.Backend(), "listen", a.server.Addr())
	version := map[string]string{"version": daemon.Version()}
	a.tell(reconcile.Event{Kind: reconcile.EventStart, Subject: "gateway/" + a.config.Name, Data: version})
	a.conn.OnStateChange(a.tellConnection)
	resolved, err := announce.Watch(ctx, plan.RequestMark)
	if err != nil {
		return fmt.Errorf("watch the neighbours: %w", err)
	}
	conflicts, err := announce.Conflicts(ctx, a.announcer.at, a.config.InternalInterface, a.config.ExternalInterface)
	if err != nil {
		return fmt.Errorf("watch for address conflicts: %w", err)
	}
	// NATS outlives the audit, and that the others, so that their last events
	// still leave, and are on disk.
	last, endLast := context.WithCancel(context.WithoutCancel(ctx))
	defer endLast()
	lastGroup, _ := daemon.NewGroup(last)
	if a.embedded != nil {
		lastGroup.Go("embedded NATS", a.embedded.run)
	}
	rear, endRear := context.WithCancel(context.WithoutCancel(ctx))
	defer endRear()
	rearGroup, _ := daemon.NewGroup(rear)
	rearGroup.Go("audit", a.audit.Run)

	g, _ := daemon.NewGroup(ctx)
	g.Go("loop", func(ctx context.Context) error { return a.loop.Run(ctx, a.changed.C()) })
	g.Go("memory", onEach(a.heap.due.C(), a.heap.tidy))
	g.Go("notices", func(ctx context.Context) error { return a.kernel.Watch(ctx, a.changed.Poke) })
	g.Go("rules", func(ctx context.Context) error { return a.kernel.WatchRules(ctx, a.changed.Poke) })
	g.Go("follower", a.follower.Run)
	g.Go("follower events", onEach(a.follower.Changed(), a.changed.Poke))
	g.Go("status", a.status.Run)
	g.Go("status events", onEach(a.status.Changed(), a.report.Poke))
	g.Go("reporter", func(ctx context.Context) error { return a.reporter.Run(ctx, a.report.C()) })
	g.Go("announcer inside", a.announcer.inside.Run)
	g.Go("announcer outside", a.announcer.outside.Run)
	g.Go("sweeper", func(ctx context.Context) error {
		return a.sweeper.Run(ctx, translate(ctx, resolved), a.sweep.C(), a.config.Resync)
	})
	g.Go("ports", a.ports.Run)
	g.Go("claims", func(ctx context.Context) error { return a.claims.Run(ctx, claimsFrom(ctx, conflicts)) })
	g.Go("strays", a.strays.Run)
	g.Go("http", a.server.Run)
	err = g.Wait()

	a.log.Info("stopping; the data path stays as it is")
	a.stopping.Store(true)
	a.tell(reconcile.Event{Kind: reconcile.EventStop, Subject: "gateway/" + a.config.Name, Data: version})
	a.audit.Flush(rear, flushTimeout)
	endRear()
	err = errors.Join(err, rearGroup.Wait(), a.conn.Close())
	endLast()
	return errors.Join(err, lastGroup.Wait(), a.audit.Close(), a.flows.Close())
}

func (a *agent) tell(e reconcile.Event) {
	if err := (auditAdapter{a.audit}).EmitAll([]reconcile.Event{e}); err != nil {
		a.log.Error("audit events lost", "count", 1, "err", err)
	}
}

// tellConnection tells what happens to the connection, but for its end with
// the process.
func (a *agent) tellConnection(s bus.StateChange) {
	if a.stopping.Load() {
		return
	}
	e := reconcile.Event{Kind: reconcile.EventConnect, Subject: "gateway/" + a.config.Name, Data: map[string]string{"server": s.URL}}
	if !s.Connected {
		reason := ""
		if s.Err != nil {
			reason = s.Err.Error()
		}
		e.Kind, e.Data = reconcile.EventLoss, map[string]string{"server": s.URL, "reason": reason}
	}
	a.tell(e)
}

// onEach calls do for each receive, until ctx ends.
func onEach(from <-chan struct{}, do func()) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-from:
				do()
			}
		}
	}
}

// translate passes on what announce reports, until ctx ends or from is closed.
func translate(ctx context.Context, from <-chan announce.Resolved) <-chan reconcile.Resolved {
	return passOn(ctx, from, func(r announce.Resolved) reconcile.Resolved { return reconcile.Resolved(r) })
}

// claimsFrom does the same with conflicts.
func claimsFrom(ctx context.Context, from <-chan announce.Conflict) <-chan reconcile.Claim {
	return passOn(ctx, from, func(c announce.Conflict) reconcile.Claim { return reconcile.Claim(c) })
}

func passOn[A, B any](ctx context.Context, from <-chan A, as func(A) B) <-chan B {
	to := make(chan B)
	go func() {
		defer close(to)
		for v := range from {
			select {
			case to <- as(v):
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}
