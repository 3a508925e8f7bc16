// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/rhythm"
	"egress-gateway.io/shared/tenant"
)

// ReasonStale is the reason of a tenant some of whose nodes send past its link.
const ReasonStale = "StaleNeighbour"

// Strays looks for pods whose packets arrive past the tenants' links. Nodes of
// such pods have a wrong neighbour entry; the tenant counts as not programmed
// until nothing more is seen of it, and its gateway IP is announced again.
type Strays struct {
	Every time.Duration
	// Read returns the pods that were astray within the last moments.
	Read func(context.Context) ([]plan.Stray, error)
	// Numbers returns the tenants' numbers of those pods that have connections
	// that tell.
	Numbers  func(context.Context, map[netip.Addr]bool) (map[netip.Addr]int, error)
	Announce func(plan.Addr)
	Snapshot func() *Snapshot
	Changed  func() // the problems did
	Log      *slog.Logger

	// seen is how many packets the kernel had counted at the last look, and
	// refused what tenants have lost of them so far.
	seen    map[strayID]uint64
	refused map[Ref]uint64
	found   atomic.Pointer[StrayView]
}

// strayID tells strays apart as the kernel does.
type strayID struct {
	pod    netip.Addr
	number int
}

// StrayView is what looks have found. It is not to be changed.
type StrayView struct {
	Problems []plan.Problem
	Lines    []StrayLine
	// Refused counts the packets of tenants, since the agent's start, that were
	// refused because they came past the link and had no connection yet. It holds
	// what other connections of the same pods tell.
	Refused map[Ref]uint64
}

// View returns what the last look found. Safe for concurrent use.
func (s *Strays) View() *StrayView {
	if v := s.found.Load(); v != nil {
		return v
	}
	return &StrayView{}
}

// Problems are those of View.
func (s *Strays) Problems() []plan.Problem { return s.View().Problems }

// Run looks once in Every until ctx ends.
func (s *Strays) Run(ctx context.Context) error {
	tick := time.NewTicker(rhythm.Until(time.Now(), s.Every, 0))
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			tick.Reset(rhythm.Until(time.Now(), s.Every, 0))
		}
		err := s.look(ctx)
		if failed := err != nil; failed != failing && ctx.Err() == nil {
			if failing = failed; failed {
				s.Log.Error("packets past the tenants' links can not be told", "err", err)
			}
		}
	}
}

func (s *Strays) look(ctx context.Context) error {
	list, err := s.Read(ctx)
	if err != nil {
		return err
	}
	ids := make([]strayID, len(list))
	for i, stray := range list {
		ids[i] = strayID{stray.Pod, stray.Number}
	}
	if err := Identify(ctx, list, s.Numbers); err != nil {
		return err
	}
	memory, before := s.Snapshot().Memory, s.View()
	s.count(ids, list, memory)
	now := &StrayView{Lines: StrayLines(memory, list), Refused: maps.Clone(s.refused)}
	for _, l := range now.Lines {
		now.Problems = append(now.Problems, l.Problem())
		for i, a := range l.gateways {
			s.Announce(plan.Addr{Dev: plan.LinkName(l.Number), IP: l.gateways[i]})
			s.Log.Debug("announced again", "tenant", l.Tenant.String(), "node", l.Node, "ip", a.String())
		}
	}
	s.found.Store(now)
	if !slices.Equal(before.Problems, now.Problems) {
		s.Changed()
	}
	return nil
}

// count adds what has come since the last look to the tenants' refused packets.
// Those with a mark of their own belong to translated connections, and passed.
func (s *Strays) count(ids []strayID, list []plan.Stray, m Memory) {
	if len(list)+len(s.seen) == 0 {
		return
	}
	tenants, seen := m.byNumber(), make(map[strayID]uint64, len(list))
	for i, id := range ids {
		more := list[i].Packets
		if before := s.seen[id]; before <= more { // else it was forgotten, and is counted anew
			more -= before
		}
		seen[id] = list[i].Packets
		if ref, known := tenants[list[i].Number]; known && id.number == 0 && more > 0 {
			if s.refused == nil {
				s.refused = make(map[Ref]uint64)
			}
			s.refused[ref] += more
		}
	}
	s.seen = seen
	maps.DeleteFunc(s.refused, func(r Ref, _ uint64) bool { _, there := m.Entry(r); return !there })
}

// byNumber returns the tenants by their numbers.
func (m Memory) byNumber() map[int]Ref {
	out := map[int]Ref{}
	for _, r := range m.Refs() {
		e, _ := m.Entry(r)
		out[e.Number] = r
	}
	return out
}

// Identify fills in the numbers that the strays' own connections do not tell, by
// what numbers tells of their pods' others, as Strays.Numbers does.
func Identify(ctx context.Context, list []plan.Stray, numbers func(context.Context, map[netip.Addr]bool) (map[netip.Addr]int, error)) error {
	unknown := map[netip.Addr]bool{}
	for _, stray := range list {
		if stray.Number == 0 {
			unknown[stray.Pod] = true
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	known, err := numbers(ctx, unknown)
	for i, stray := range list {
		if stray.Number == 0 {
			list[i].Number = known[stray.Pod]
		}
	}
	return err
}

// StrayLine sums the packets that a node has sent past the link of a tenant.
type StrayLine struct {
	Cluster, Node string
	Tenant        Ref // empty where it can not be told
	Number        int
	Family        tenant.Family
	Packets       uint64
	gateways      []netip.Addr
}

// StrayLines tells of which nodes, and of which tenants, the strays are. It is
// sorted. Strays of subnets that belong to no node are left out.
func StrayLines(m Memory, list []plan.Stray) []StrayLine {
	if len(list) == 0 {
		return nil
	}
	tenants := m.byNumber()
	sums := map[strayKey]uint64{}
	for _, stray := range list {
		if cluster, node, ok := nodeOf(m, stray.Pod); ok {
			number := stray.Number
			if _, known := tenants[number]; !known {
				number = 0
			}
			sums[strayKey{cluster, node, number, tenant.FamilyOf(stray.Pod)}] += stray.Packets
		}
	}
	var out []StrayLine
	for k, packets := range sums {
		l := StrayLine{Cluster: k.Cluster, Node: k.Node, Number: k.Number, Family: k.Family, Packets: packets}
		if k.Number != 0 {
			l.Tenant = tenants[k.Number]
			e, _ := m.Entry(l.Tenant)
			l.gateways = k.Family.Addrs(e.Record.GatewayIPs)
		}
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b StrayLine) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Number, b.Number),
			cmp.Compare(a.Family, b.Family))
	})
	return out
}

// strayKey is what packets past a link are summed by.
type strayKey struct {
	Cluster, Node string
	Number        int
	Family        tenant.Family
}

func nodeOf(m Memory, pod netip.Addr) (cluster, node string, ok bool) {
	for cluster, c := range m.Clusters {
		for name, n := range c.Nodes {
			if slices.ContainsFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(pod) }) {
				return cluster, name, true
			}
		}
	}
	return "", "", false
}

// Problem holds no count: it must not change with every packet.
func (l StrayLine) Problem() plan.Problem {
	if l.Number == 0 {
		return plan.Problem{Cluster: l.Cluster, Node: l.Node, Reason: ReasonStale, Message: fmt.Sprintf(
			"node %s sends pods' traffic to the gateway VM itself instead of to a tenant's link; new connections are refused until it asks for the gateway IP again", l.Node)}
	}
	var ips []string
	for _, a := range l.gateways {
		ips = append(ips, a.String())
	}
	return plan.Problem{Cluster: l.Tenant.Cluster, Tenant: l.Tenant.Name, Reason: ReasonStale, Message: fmt.Sprintf(
		"node %s has a wrong neighbour entry for gateway IP %s: its packets arrive past the tenant's link, and new connections from there are refused; it is being announced again",
		l.Node, strings.Join(ips, " and "))}
}
