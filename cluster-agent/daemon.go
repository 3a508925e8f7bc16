// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/klog/v2"

	"egress-gateway.io/cluster-agent/internal/kube"
	"egress-gateway.io/cluster-agent/internal/publish"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
)

// flushTimeout limits how long the end of the program waits for NATS to take
// the last audit events.
const flushTimeout = 2 * time.Second

// agent holds the parts of the daemon, wired but not running.
type agent struct {
	config   Config
	log      *slog.Logger
	conn     *bus.Conn
	writer   *bus.Writer
	statuses *bus.StatusFollower
	audit    *bus.Audit
	auditor  auditAdapter
	kube     *kube.Agent
	metrics  *publish.Metrics
	loop     atomic.Pointer[publish.Loop] // of the current term as leader, or nil
	server   *daemon.Server
	stopping atomic.Bool
}

// serve runs the agent until ctx ends.
func serve(ctx context.Context, c Config, log *slog.Logger) error {
	klog.SetSlogLogger(log.With("step", "client-go"))
	a, err := newAgent(ctx, c, log)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

// newAgent opens what the daemon needs. If it fails, the process ends, and what
// was opened ends with it.
func newAgent(ctx context.Context, c Config, log *slog.Logger) (*agent, error) {
	a := &agent{config: c, log: log}
	version := daemon.Version()
	cfg, err := kube.Config(c.Kubeconfig, "egress-cluster-agent/"+version)
	if err != nil {
		return nil, err
	}
	if a.conn, err = bus.Connect(ctx, c.NATS, c.Name, log, bus.WithVersion("cluster-agent "+version)); err != nil {
		return nil, err
	}
	a.writer = bus.NewWriter(a.conn, c.Name, bus.WriterOptions{Identity: c.Identity, Clock: time.Now, Log: log})
	a.statuses = bus.NewStatusFollower(a.conn, bus.StatusOptions{Clock: time.Now, Log: log})
	a.audit, err = bus.NewAudit(a.conn, bus.AuditOptions{
		Dir: filepath.Join(c.StateDir, "audit"), Role: bus.RoleCluster, Name: c.Name, Clock: time.Now, Log: log,
	})
	if err != nil {
		return nil, fmt.Errorf("audit spool: %w; set CLUSTER_STATE_DIR to a writable directory", err)
	}
	a.auditor = auditAdapter{a.audit, c.Name}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.kube, err = kube.New(cfg, kube.Options{Log: log, Clock: time.Now, Metrics: kube.NewMetrics(registry), Changed: a.poke})
	if err != nil {
		return nil, err
	}
	a.metrics = publish.NewMetrics(registry)
	figures{a.behind, a.conn, a.statuses, a.audit}.register(registry)
	a.server, err = daemon.Endpoints{Address: c.Listen, Live: a.live, Ready: a.kube.Ready, Registry: registry}.Listen()
	if err != nil {
		return nil, fmt.Errorf("CLUSTER_LISTEN=%q: %w", c.Listen, err)
	}
	return a, nil
}

// run serves until ctx ends.
func (a *agent) run(ctx context.Context) error {
	a.log.Info("starting", "version", daemon.Version(), "identity", a.config.Identity, "listen", a.server.Addr())
	a.conn.OnStateChange(a.tellConnection)
	// The audit outlives the others, so that their last events still leave.
	rear, endRear := context.WithCancel(context.WithoutCancel(ctx))
	defer endRear()
	rearGroup, _ := daemon.NewGroup(rear)
	rearGroup.Go("audit", a.audit.Run)

	g, _ := daemon.NewGroup(ctx)
	g.Go("http", a.server.Run)
	g.Go("watch", a.kube.Run)
	g.Go("writer", a.writer.Run)
	g.Go("writer events", forward(a.writer.Changed(), a.resync))
	g.Go("status", a.statuses.Run)
	g.Go("status events", forward(a.statuses.Changed(), a.poke))
	g.Go("leader", a.lead)
	err := g.Wait()

	a.log.Info("stopping; the allocations and the gateways stay as they are")
	a.stopping.Store(true)
	a.audit.Flush(rear, flushTimeout)
	endRear()
	return errors.Join(err, rearGroup.Wait(), a.conn.Close(), a.audit.Close())
}

// lead waits for warm caches, and then leads whenever the lease is won. To lose
// it, for instance since the API server is away for long, does not end the
// program: nothing of the lost term is under way any more, and the caches stay
// warm for the next one.
func (a *agent) lead(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.kube.Started():
	}
	lease := kube.Lease{
		Namespace: a.config.LeaseNamespace, Name: a.config.LeaseName, Identity: a.config.Identity,
		Duration: a.config.LeaseDuration, Renew: a.config.LeaseRenewDeadline, Retry: a.config.LeaseRetryPeriod,
	}
	for {
		err := a.kube.Lead(ctx, lease, a.term)
		if !errors.Is(err, kube.ErrLost) {
			return err
		}
		a.log.Warn("no longer leading; trying to lead again", "err", err, "step", "lease")
	}
}

// term is one term as leader. Each has a loop of its own, which knows nothing of
// earlier ones: others may have led in between.
func (a *agent) term(ctx context.Context) error {
	nodes := &publishedNodes{cluster: a.config.Name, conn: a.conn, poke: a.poke}
	loop := publish.New(publish.Options{
		ClusterName: a.config.Name, Cluster: a.kube, Audit: a.auditor, Log: a.log, Clock: time.Now, Metrics: a.metrics,
		Bus: busAdapter{cluster: a.config.Name, networks: a.config.PodNetworks, conn: a.conn, writer: a.writer, statuses: a.statuses, nodes: nodes, log: a.log},
	})
	a.loop.Store(loop)
	defer a.loop.Store(nil)
	g, _ := daemon.NewGroup(ctx)
	g.Go("loop", loop.Run)
	g.Go("published nodes", nodes.run)
	return g.Wait()
}

// poke has the loop look again, if this replica leads.
func (a *agent) poke() {
	if l := a.loop.Load(); l != nil {
		l.Poke()
	}
}

// resync has the loop write to the bus again, if this replica leads.
func (a *agent) resync() {
	if l := a.loop.Load(); l != nil {
		l.Resync()
	}
}

// behind is for how long the gateways have not been told the latest state, if
// this replica leads.
func (a *agent) behind() (d time.Duration, leads bool) {
	if l := a.loop.Load(); l != nil {
		return l.Behind(), true
	}
	return 0, false
}

// live fails if this replica leads and its loop does not turn over.
func (a *agent) live() error {
	if l := a.loop.Load(); l != nil {
		return l.Turning()
	}
	return nil
}

// tellConnection tells what happens to the connection, but for its end with
// the process.
func (a *agent) tellConnection(s bus.StateChange) {
	a.poke()
	if a.stopping.Load() {
		return
	}
	e := bus.Event{Kind: "connect", Subject: "cluster/" + a.config.Name, Data: connection{Server: s.URL, Writer: a.config.Identity}}
	if !s.Connected {
		reason := ""
		if s.Err != nil {
			reason = s.Err.Error()
		}
		e.Kind, e.Data = "loss", connection{Server: s.URL, Writer: a.config.Identity, Reason: reason}
	}
	e.Cluster = a.config.Name
	if err := a.audit.Emit(e); err != nil {
		a.log.Error("audit event lost", "err", err)
	}
}

// connection is the content of the audit events connect and loss.
type connection struct {
	Server string `json:"server,omitempty"`
	Writer string `json:"writer"`
	Reason string `json:"reason,omitempty"`
}

// forward calls fn for each receive, until ctx ends.
func forward(from <-chan struct{}, fn func()) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-from:
				fn()
			}
		}
	}
}
