// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"egress-gateway.io/shared/rhythm"
	"egress-gateway.io/shared/tenant"
)

// Delays of the sweeper.
const (
	// sweepSoon collects the events that come together, as after a failover.
	sweepSoon = 50 * time.Millisecond
	// sweepAgain is the distance of sweeps from each other. One that has a reason,
	// or finds something, is followed by a second one, for what was under way
	// during the first.
	sweepAgain = time.Second
)

// Sweeper ends untranslated connections: those that began while a node had a
// wrong or no idea of where its tenant's gateway IP is. Such a connection would
// stay refused for as long as it is tried, although the node knows better now.
type Sweeper struct {
	Flows    Flows
	Audit    Audit
	Log      *slog.Logger
	Snapshot func() *Snapshot
}

// Resolved says that Node has just learned where Target is.
type Resolved struct{ Node, Target netip.Addr }

// Run sweeps for the pods of each node that resolves a tenant's gateway IP, and
// for all pods whenever all receives and once in every, until ctx ends.
func (s Sweeper) Run(ctx context.Context, resolved <-chan Resolved, all <-chan struct{}, every time.Duration) error {
	periodic := time.NewTicker(rhythm.Until(time.Now(), every, 0))
	defer periodic.Stop()
	var due <-chan time.Time
	var last time.Time
	var now, again []netip.Prefix
	reason := false
	add := func(pods []netip.Prefix, hint bool) {
		now, reason = union(now, pods), reason || hint && len(pods) > 0
		if due == nil && len(now) > 0 {
			due = time.After(max(sweepSoon, sweepAgain-time.Since(last)))
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case r, open := <-resolved:
			if !open {
				resolved = nil // the periodic sweep remains
				continue
			}
			add(s.podsBehind(r), true)
		case <-all:
			add(s.allPods(), true)
		case <-periodic.C:
			periodic.Reset(rhythm.Until(time.Now(), every, 0))
			add(s.allPods(), false)
		case <-due:
			pods := union(now, again)
			if !s.sweep(ctx, pods) && !reason {
				now = nil
			}
			last, due = time.Now(), nil
			again, now, reason = now, nil, false
			if len(again) > 0 {
				due = time.After(sweepAgain)
			}
		}
	}
}

// sweep tells whether it found something, or may have missed it.
func (s Sweeper) sweep(ctx context.Context, pods []netip.Prefix) (found bool) {
	n, err := s.Flows.DeleteUntranslated(ctx, pods)
	if err != nil && ctx.Err() == nil {
		s.Log.Error("untranslated connections could not be ended", "err", err)
	}
	if n == 0 {
		return err != nil
	}
	s.Log.Info("untranslated connections ended", "count", n)
	e := Event{Kind: EventFlush, Subject: "untranslated", Data: flushData{fmt.Sprintf("untranslated connections from %v", pods), n}}
	if err := s.Audit.EmitAll([]Event{e}); err != nil {
		s.Log.Error("audit events lost", "count", 1, "err", err)
	}
	return true
}

// podsBehind returns the pod subnets of the node, if Target is the gateway IP
// of a tenant of its cluster. Over IPv6 a node may ask from a link-local
// address, which the records do not know: it may be any node of the cluster.
func (s Sweeper) podsBehind(r Resolved) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range s.Snapshot().Memory.Clusters {
		if !hasGateway(c, r.Target) {
			continue
		}
		for _, n := range c.Nodes {
			if slices.Contains(n.Addresses, r.Node) || r.Node.IsLinkLocalUnicast() {
				out = append(out, tenant.FamilyOf(r.Target).Prefixes(n.Subnets)...)
			}
		}
	}
	return out
}

func hasGateway(c Cluster, a netip.Addr) bool {
	for _, e := range c.Tenants {
		if slices.Contains(e.Record.GatewayIPs, a) {
			return true
		}
	}
	return false
}

func (s Sweeper) allPods() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range s.Snapshot().Memory.Clusters {
		if c.Network != nil {
			out = union(out, c.Network.PodNetworks)
		}
		for _, n := range c.Nodes {
			out = union(out, n.Subnets)
		}
	}
	return out
}

// union returns the elements of a and b, each once, sorted.
func union(a, b []netip.Prefix) []netip.Prefix {
	out := slices.Concat(a, b)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}
