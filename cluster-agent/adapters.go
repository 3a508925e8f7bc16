// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"egress-gateway.io/cluster-agent/internal/publish"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/tenant"
)

// The types below let publish use packages that it does not know.

// busAdapter is NATS as publish sees it.
type busAdapter struct {
	cluster  string
	networks []netip.Prefix
	conn     *bus.Conn
	writer   *bus.Writer
	statuses *bus.StatusFollower
	nodes    *publishedNodes
	log      *slog.Logger
}

func (b busAdapter) Sync(ctx context.Context, s publish.State) error {
	result, err := b.writer.Sync(ctx, bus.State{
		Tenants: s.Tenants, Nodes: s.Nodes,
		Network: &tenant.Network{Schema: tenant.Schema, Cluster: b.cluster, PodNetworks: b.networks},
	})
	if err == nil && result.Changes() > 0 {
		b.log.Info("told the gateways", "step", "bus", "written", result.Written, "released", result.Released, "purged", result.Purged, "generation", result.Generation)
	}
	return err
}

func (b busAdapter) Connected() bool { return b.conn.Connected() }

func (b busAdapter) PublishedNodes() ([]tenant.Node, bool) { return b.nodes.get() }

func (b busAdapter) Statuses() map[string][]tenant.Status { return b.statuses.Statuses(b.cluster) }

func (b busAdapter) Summaries() []tenant.Summary { return b.statuses.Summaries() }

// publishedNodes reads once which nodes the bucket holds: a new leader needs
// the records of nodes that do not tell enough of themselves at that moment.
type publishedNodes struct {
	cluster string
	conn    *bus.Conn
	poke    func() // called once they are known

	mu    sync.Mutex
	nodes []tenant.Node
	known bool
}

func (p *publishedNodes) get() ([]tenant.Node, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nodes, p.known
}

// run follows the bucket until it has seen the cluster, and then waits for ctx.
func (p *publishedNodes) run(ctx context.Context) error {
	reading, done := context.WithCancel(ctx)
	defer done()
	f := bus.NewFollower(p.conn, bus.FollowerOptions{Cluster: p.cluster, Clock: time.Now, Log: slog.New(slog.DiscardHandler)})
	var wg sync.WaitGroup
	wg.Go(func() {
		// It ends with its context only; what it would complain of, the writer
		// reports as well.
		_ = f.Run(reading)
	})
	for !p.take(f) && reading.Err() == nil {
		select {
		case <-ctx.Done():
		case <-f.Changed():
		}
		if ctx.Err() != nil {
			break
		}
	}
	p.poke()
	done()
	wg.Wait()
	<-ctx.Done()
	return nil
}

func (p *publishedNodes) take(f *bus.Follower) bool {
	v, ok := f.Views()[p.cluster]
	if !ok || v.Ready.Generation == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes, p.known = v.Nodes, true
	return true
}

// auditAdapter is the audit as publish sees it.
type auditAdapter struct {
	audit   *bus.Audit
	cluster string
}

func (a auditAdapter) Emit(events ...publish.AuditEvent) error {
	out := make([]bus.Event, len(events))
	for i, e := range events {
		out[i] = bus.Event{Cluster: a.cluster, Kind: e.Kind, Subject: e.Subject, ID: e.ID, Data: e.Data}
	}
	return a.audit.EmitAll(out)
}
