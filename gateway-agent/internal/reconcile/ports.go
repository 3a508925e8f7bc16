// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/rhythm"
)

// PortTarget is where translated connections go, and the address that they
// leave with: two connections to one PortTarget need two source ports.
type PortTarget struct {
	Protocol    uint8
	Destination netip.AddrPort
	Egress      netip.Addr
}

// PortUse is what the connections of one mark come to. Used are those to the
// Busiest target.
type PortUse struct {
	Connections int
	Busiest     PortTarget
	Used        int
}

// Usage is what connection tracking held at one moment. Full are the targets
// with at least the number of connections that was asked for.
type Usage struct {
	Entries int
	Marks   map[uint32]PortUse
	Full    map[PortTarget]int
}

// LostFlows count what connection tracking dropped since it began, whoever sent
// it: new connections without a free port (or that lost a race to begin), those
// that found the table full, and entries that made room for others.
type LostFlows struct{ NotInserted, Dropped, Evicted uint64 }

// FlowCounts reads connection tracking. Usage goes over the whole table, Count
// asks the kernel for a number that it keeps.
type FlowCounts interface {
	Count(context.Context) (int, error)
	Usage(ctx context.Context, mask uint32, full int) (Usage, error)
	Lost(context.Context) (LostFlows, error)
}

// How often PortWatch looks.
const (
	portsEvery = 10 * time.Second
	portsSoon  = 2 * time.Second // while a target has more than half of its ports in use
	// A look may take a hundredth of one processor, and while somebody comes
	// near the limit a twentieth: then a full table is looked at every few
	// seconds all the same.
	portsShare     = 100
	portsSoonShare = 20
	// portsRest is the time between two looks at the table while it holds fewer
	// connections than any target could need to be watched: then nothing but the
	// metrics asks for them, and to go over empty buckets takes 5 to 10 ms.
	portsRest = time.Minute
)

// PortsView is what PortWatch knew after a look. It must not be changed.
type PortsView struct {
	At      time.Time // zero before the first look
	Counted time.Time // when the table was looked at
	Took    time.Duration
	Entries int
	Tenants map[Ref]PortUse
	Lost    LostFlows
	// Failed counts, since the start, the connections that most likely failed
	// because their tenant had no port left.
	Failed   map[Ref]uint64
	Problems []plan.Problem
	Spills   []plan.Spill
}

// PortWatch watches how many source ports the tenants use towards single
// destinations. There are Ports for each PortTarget, and whoever wants one more
// is dropped without a word by the kernel.
type PortWatch struct {
	Flows    FlowCounts
	MarkMask uint32
	Ports    int // source ports for each target
	Clock    func() time.Time
	Log      *slog.Logger
	Snapshot func() *Snapshot
	// Changed is told when the problems or the spills are others than before.
	Changed func()

	seen     *Snapshot // whose tenants the view holds
	levels   map[PortTarget]portState
	spilling map[PortTarget]netip.Addr // the address that new connections take
	view     atomic.Pointer[PortsView]
}

// View returns what the last look found. Safe for concurrent use.
func (w *PortWatch) View() *PortsView {
	if v := w.view.Load(); v != nil {
		return v
	}
	return &PortsView{}
}

// Run looks, more often when somebody comes near the limit and more rarely when
// the table is large, until ctx ends.
func (w *PortWatch) Run(ctx context.Context) error {
	failing := false
	for {
		busiest, err := w.Look(ctx)
		if failed := err != nil; failed != failing && ctx.Err() == nil {
			if failing = failed; failed {
				w.Log.Error("the use of ports can not be watched; trying on", "err", err)
			}
		}
		rest := pace(w.View().Took, busiest)
		if rest == portsEvery || rest == portsSoon {
			rest = rhythm.Until(time.Now(), rest, 0) // else it has to be as long as it is
		}
		next := time.NewTimer(rest)
		select {
		case <-ctx.Done():
			next.Stop()
			return nil
		case <-next.C:
		}
	}
}

// pace returns the time until the next look. busiest is the part of its ports
// that the busiest target uses.
func pace(took time.Duration, busiest float64) time.Duration {
	if busiest > 0.5 {
		return max(portsSoon, took*portsSoonShare)
	}
	return max(portsEvery, took*portsShare)
}

// Look looks once, at the table only if there is something to see. It returns
// the part of its ports that the busiest target uses, 0 if that is too little to
// matter. Not safe for concurrent use.
func (w *PortWatch) Look(ctx context.Context) (busiest float64, err error) {
	began := w.Clock()
	if w.resting(began) {
		entries, err := w.Flows.Count(ctx)
		if err != nil {
			return 0, err
		}
		if entries < w.of(levelWatched) {
			return 0, w.glance(ctx, began, entries)
		}
	}
	usage, err := w.Flows.Usage(ctx, w.MarkMask, w.of(levelWatched))
	if err != nil {
		return 0, err
	}
	lost, err := w.Flows.Lost(ctx)
	if err != nil {
		return 0, err
	}
	before, tenants := w.View(), w.tenants()
	now := &PortsView{
		At: began, Counted: began, Took: w.Clock().Sub(began), Entries: usage.Entries,
		Tenants: make(map[Ref]PortUse, len(tenants.byMark)), Lost: lost, Failed: maps.Clone(before.Failed),
	}
	for mark, ref := range tenants.byMark {
		use := usage.Marks[mark]
		now.Tenants[ref] = use
		busiest = max(busiest, float64(use.Used)/float64(w.Ports))
	}
	var failing []PortTarget
	if !before.At.IsZero() && lost.NotInserted > before.Lost.NotInserted {
		failing = w.suspects(usage.Full)
		now.Failed = attribute(now.Failed, lost.NotInserted-before.Lost.NotInserted, tenants.of(failing))
	}
	w.judge(usage.Full, failing, began)
	now.Spills = w.spill(usage.Full, tenants)
	now.Problems = w.problems(tenants)
	w.view.Store(now)
	if !slices.Equal(before.Problems, now.Problems) || !slices.Equal(before.Spills, now.Spills) {
		w.Changed()
	}
	return busiest, nil
}

// resting tells whether the table need not be looked at if it holds little.
func (w *PortWatch) resting(now time.Time) bool {
	counted := w.View().Counted
	return len(w.levels)+len(w.spilling) == 0 && !counted.IsZero() && now.Sub(counted) < portsRest && w.sameTenants()
}

// sameTenants tells whether the table was looked at for just the tenants that
// there are now: the metrics of a new one do not wait.
func (w *PortWatch) sameTenants() bool {
	s := w.Snapshot()
	if s == w.seen {
		return true
	}
	counted, n := w.View().Tenants, 0
	for cluster, c := range s.Memory.Clusters {
		for name, e := range c.Tenants {
			if e.Number == 0 {
				continue
			}
			if _, ok := counted[Ref{cluster, name}]; !ok {
				return false
			}
			n++
		}
	}
	if n == len(counted) {
		w.seen = s
	}
	return n == len(counted)
}

// glance is a look that leaves the table alone: no target has so many
// connections that it would be watched.
func (w *PortWatch) glance(ctx context.Context, began time.Time, entries int) error {
	lost, err := w.Flows.Lost(ctx)
	if err != nil {
		return err
	}
	now := *w.View()
	now.At, now.Entries, now.Lost = began, entries, lost
	w.view.Store(&now)
	return nil
}

// of returns that part of the ports.
func (w *PortWatch) of(part float64) int { return int(part * float64(w.Ports)) }

// owners finds tenants by what connections show.
type owners struct {
	byMark   map[uint32]Ref
	byEgress map[netip.Addr]Ref
}

func (w *PortWatch) tenants() owners {
	out := owners{make(map[uint32]Ref), make(map[netip.Addr]Ref)}
	m := w.Snapshot().Memory
	for cluster, c := range m.Clusters {
		for name, e := range c.Tenants {
			ref := Ref{cluster, name}
			if e.Number > 0 {
				out.byMark[plan.Mark(w.MarkMask, e.Number)] = ref
			}
			for _, a := range e.Record.EgressIPs {
				out.byEgress[a] = ref
			}
		}
	}
	return out
}

// of returns the tenants that the targets' addresses belong to, each once.
func (o owners) of(targets []PortTarget) []Ref {
	var out []Ref
	for _, t := range targets {
		if ref, ok := o.byEgress[t.Egress]; ok {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, compareRefs)
	return slices.Compact(out)
}

// attribute adds n failed connections to those who had no port left: in equal
// parts, as the kernel counts them for all together. Without such a tenant
// nobody is charged.
func attribute(failed map[Ref]uint64, n uint64, to []Ref) map[Ref]uint64 {
	if failed == nil {
		failed = make(map[Ref]uint64)
	}
	for i, ref := range to {
		part := n / uint64(len(to)-i)
		failed[ref] += part
		n -= part
	}
	return failed
}
