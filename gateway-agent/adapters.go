// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"egress-gateway.io/gateway-agent/internal/announce"
	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/tenant"
)

// The types below let reconcile use packages that it does not know.

type kernelAdapter struct{ *kernel.Kernel }

func (k kernelAdapter) Look(ctx context.Context, afresh bool) (reconcile.Sight, error) {
	s, err := k.Kernel.Look(ctx, afresh)
	return reconcile.Sight(s), err
}

func (k kernelAdapter) Apply(ctx context.Context, steps []plan.Step) ([]reconcile.Failure, []plan.Step) {
	failures, rest := k.Kernel.Apply(ctx, steps)
	var out []reconcile.Failure
	for _, f := range failures {
		out = append(out, reconcile.Failure(f))
	}
	return out, rest
}

type flowsAdapter struct{ *flows.Flows }

func (f flowsAdapter) Delete(ctx context.Context, matches []reconcile.FlowMatch) ([]int, error) {
	of := make([]flows.Match, len(matches))
	for i, m := range matches {
		of[i] = flows.Match(m)
	}
	return f.Flows.Delete(ctx, of)
}

// numbers returns a function that tells the tenants' numbers of pods by the
// marks of their connections.
func (f flowsAdapter) numbers(mask uint32) func(context.Context, map[netip.Addr]bool) (map[netip.Addr]int, error) {
	return func(ctx context.Context, pods map[netip.Addr]bool) (map[netip.Addr]int, error) {
		marks, err := f.MarksOf(ctx, pods, mask)
		out := make(map[netip.Addr]int, len(marks))
		for pod, mark := range marks {
			out[pod] = plan.NumberOf(mask, mark)
		}
		return out, err
	}
}

// countedFlows counts what is deleted, for the metrics.
type countedFlows struct {
	reconcile.Flows
	deleted prometheus.Counter
}

func (f countedFlows) Delete(ctx context.Context, matches []reconcile.FlowMatch) ([]int, error) {
	counts, err := f.Flows.Delete(ctx, matches)
	for _, n := range counts {
		f.deleted.Add(float64(n))
	}
	return counts, err
}

func (f countedFlows) DeleteUntranslated(ctx context.Context, pods []netip.Prefix) (int, error) {
	n, err := f.Flows.DeleteUntranslated(ctx, pods)
	f.deleted.Add(float64(n))
	return n, err
}

// portsAdapter counts connections.
type portsAdapter struct{ *flows.Flows }

func (p portsAdapter) Usage(ctx context.Context, mask uint32, full int) (reconcile.Usage, error) {
	u, err := p.Flows.Usage(ctx, mask, full)
	out := reconcile.Usage{
		Entries: u.Entries, Marks: make(map[uint32]reconcile.PortUse, len(u.Marks)), Full: make(map[reconcile.PortTarget]int, len(u.Full)),
	}
	for mark, use := range u.Marks {
		out.Marks[mark] = reconcile.PortUse{Connections: use.Connections, Busiest: reconcile.PortTarget(use.Busiest), Used: use.Used}
	}
	for t, used := range u.Full {
		out.Full[reconcile.PortTarget(t)] = used
	}
	return out, err
}

func (p portsAdapter) Lost(ctx context.Context) (reconcile.LostFlows, error) {
	l, err := p.Flows.Lost(ctx)
	return reconcile.LostFlows(l), err
}

// announceAdapter announces gateway IPs on the nodes' network and egress IPs
// outside, each at its own pace: the pace that OVN needs must not hold up the
// routers, and an egress IP waits for no gateway IP.
type announceAdapter struct{ inside, outside *announce.Announcer }

// The pace outside: routers learn at hundreds of packets a second, and need no
// refresh for the VM's own MAC; it mends what a router got wrong.
const (
	outsidePerSecond = 100
	outsideBurst     = outsidePerSecond / 2
	outsideRefresh   = 5 * time.Minute
)

func newAnnouncer(log *slog.Logger) (announceAdapter, error) {
	inside, err := announce.New(announce.Options{Log: log})
	if err != nil {
		return announceAdapter{}, err
	}
	outside, err := announce.New(announce.Options{PerSecond: outsidePerSecond, Requests: outsidePerSecond, Burst: outsideBurst, Refresh: outsideRefresh, Log: log})
	if err != nil {
		return announceAdapter{}, errors.Join(err, inside.Close())
	}
	return announceAdapter{inside, outside}, nil
}

// at returns the link on which ip is announced regularly.
func (a announceAdapter) at(ip netip.Addr) (string, bool) {
	if dev, ok := a.inside.At(ip); ok {
		return dev, true
	}
	return a.outside.At(ip)
}

func (a announceAdapter) of(addr plan.Addr) *announce.Announcer {
	if _, link := plan.LinkNumber(addr.Dev); link {
		return a.inside
	}
	return a.outside
}

func (a announceAdapter) Announce(addr plan.Addr) { a.of(addr).Announce(announce.Target(addr)) }

func (a announceAdapter) Keep(addrs []plan.Addr) {
	targets := map[*announce.Announcer][]announce.Target{a.inside: nil, a.outside: nil}
	for _, addr := range addrs {
		targets[a.of(addr)] = append(targets[a.of(addr)], announce.Target(addr))
	}
	for announcer, list := range targets {
		announcer.Keep(list)
	}
}

// prober asks for addresses with one probe each.
type prober struct {
	*announce.Announcer
	wait time.Duration
}

func (p prober) Probe(ctx context.Context, addrs []plan.Addr) (map[netip.Addr]string, error) {
	targets := make([]announce.Target, len(addrs))
	for i, a := range addrs {
		targets[i] = announce.Target(a)
	}
	found, err := p.Announcer.Probe(ctx, targets, p.wait)
	out := make(map[netip.Addr]string, len(found))
	for ip, c := range found {
		out[ip] = c.MAC
	}
	return out, err
}

type statusAdapter struct{ *bus.StatusWriter }

func (s statusAdapter) Sync(ctx context.Context, all map[string][]byte) error {
	_, err := s.StatusWriter.Sync(ctx, all)
	return err
}

func (s statusAdapter) Renew(ctx context.Context, key string, record []byte) error {
	return s.StatusWriter.Renew(ctx, key, record)
}

type auditAdapter struct{ *bus.Audit }

func (a auditAdapter) EmitAll(events []reconcile.Event) error {
	out := make([]bus.Event, len(events))
	for i, e := range events {
		out[i] = bus.Event(e)
	}
	return a.Audit.EmitAll(out)
}

// busFigures is what the metrics ask of NATS.
type busFigures struct {
	*bus.Conn
	*bus.Follower
}

// viewsOf returns the confirmed views: a follower returns no others.
func viewsOf(f *bus.Follower) map[string]reconcile.View {
	out := map[string]reconcile.View{}
	for cluster, v := range f.Views() {
		out[cluster] = viewOf(v)
	}
	return out
}

func viewOf(v bus.View) reconcile.View {
	view := reconcile.View{
		Confirmed: true, Generation: v.Ready.Generation, Network: v.Network,
		Serial: v.Serial, Before: v.Before, Changed: v.Changed,
		Tenants: v.Tenants,
		Nodes:   make(map[string]tenant.Node, len(v.Nodes)),
		Bad:     make(map[tenant.Key]error, len(v.Problems)),
	}
	for _, n := range v.Nodes {
		view.Nodes[n.Name] = n
	}
	for _, p := range v.Problems {
		if key, err := tenant.ParseKey(p.Key); err == nil {
			view.Bad[key] = p.Err
		}
	}
	return view
}

// troubleOf returns what is wrong on the bus beyond single records.
func troubleOf(f *bus.Follower) []plan.Problem {
	var out []plan.Problem
	for _, p := range f.Problems() {
		problem := plan.Problem{Reason: "Bus", Message: p.Err.Error()}
		if key, err := tenant.ParseKey(p.Key); err == nil {
			problem.Cluster = key.Cluster
		} else if p.Key != "" {
			problem.Message = "key " + p.Key + ": " + problem.Message
		}
		out = append(out, problem)
	}
	return out
}
