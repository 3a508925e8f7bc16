// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/allocate"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/shared/tenant"
)

// parallel is how many requests to the API server are under way at once.
const parallel = 16

// publishedWait is how long a new leader waits for the node records that the bus
// holds, when it needs them.
const publishedWait = 10 * time.Second

// pass is one look at everything.
type pass struct {
	*Loop
	time      time.Time
	input     derive.Input
	derived   derive.Output
	published bool // the node records of the bus were known before derived
	gateways  map[string]derive.Gateway
	wants     []*want
	tenants   map[string]*v1alpha1.EgressTenant // the snapshot, with this pass's writes
	routes    map[string]derive.Route
	leaving   []*v1alpha1.EgressTenant // to be released

	mu    sync.Mutex // guards wake, which steps set that run in parallel
	again bool       // there is more to do at once
	wake  time.Time  // when the next pass is due; zero if only events matter
}

// want is a tenant that is asked for, and what has become of it in this pass.
type want struct {
	derive.Want
	refused *derive.Refusal        // by the allocation
	stored  *v1alpha1.EgressTenant // as written in this pass
	route   *derive.Refusal        // why its route can not be what it should be
	audited bool                   // its allocation was told in this pass

	ready    bool   // as its status says now
	notReady string // the reason, if it is not
}

// object returns its EgressTenant as it is now, or nil.
func (w *want) object() *v1alpha1.EgressTenant {
	if w.stored != nil {
		return w.stored
	}
	return w.Object
}

// serving says whether it has an EgressTenant with addresses.
func (w *want) serving() bool {
	o := w.object()
	return o != nil && len(o.Spec.EgressIPs) > 0 && (w.stored != nil || w.Held())
}

// why returns the reason for which the request is not met, or nil.
func (w *want) why() *derive.Refusal {
	if w.Refused != nil {
		return w.Refused
	}
	return w.refused
}

// undecided says that it needs an allocation, and that this pass did not get to
// it: there is nothing new to say of it.
func (w *want) undecided() bool { return w.Allocate && w.refused == nil && w.stored == nil }

func (w *want) names() []string {
	out := make([]string, len(w.Members))
	for i, m := range w.Members {
		out[i] = m.Name
	}
	return out
}

// now reads the clock; p.time is when the pass began.
func (p *pass) now() time.Time { return p.Clock() }

// due makes the loop wake up at t, if t is not zero.
func (p *pass) due(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

// generation is that of a pool in the snapshot; 0 if there is none.
func (p *pass) generation(pool string) int64 {
	for _, o := range p.input.Pools {
		if o.Name == pool {
			return o.Generation
		}
	}
	return 0
}

// The steps of a pass.
const (
	stepQuarantine = "quarantine"
	stepAllocate   = "allocate"
	stepAudit      = "audit"
	stepRoutes     = "routes"
	stepRelease    = "release"
	stepStatus     = "status"
	stepPools      = "pools"
)

// pass makes one pass. Errors of single objects do not keep it from the others.
func (l *Loop) pass(ctx context.Context) (*pass, error) {
	p := l.look()
	var errs []error
	step := func(name string, err error) {
		if err != nil {
			l.Metrics.Failed(name)
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	step(stepQuarantine, p.restVanished(ctx))
	step(stepAllocate, p.allocate(ctx))
	p.tell(p.leaving)
	step(stepAudit, p.tellAllocations())
	step(stepRoutes, p.applyRoutes(ctx))
	step(stepRelease, p.release(ctx))
	step(stepStatus, p.writeStatus(ctx))
	step(stepPools, p.keepPools(ctx))
	p.report()
	p.remember()
	p.show()
	return p, errors.Join(errs...)
}

// look takes a snapshot and derives what should be.
func (l *Loop) look() *pass {
	p := &pass{Loop: l, time: l.Clock()}
	connected := l.Bus.Connected()
	if !connected {
		l.upSince = time.Time{}
	} else if l.upSince.IsZero() {
		l.upSince = p.time
	}
	summaries := l.Bus.Summaries()
	gateways, dies := l.gateways.look(summaries, connected, p.time)
	p.gateways = gateways
	p.due(dies)
	published, ok := l.Bus.PublishedNodes()
	if p.published = ok; ok {
		for _, n := range published {
			if _, known := l.nodes[n.Name]; !known {
				l.nodes[n.Name] = n
			}
		}
	}
	p.input = l.Cluster.Snapshot()
	p.input.Cluster, p.input.Gateways, p.input.LastNodes = l.ClusterName, summaries, l.nodes
	l.ledgers.compare(p.input)
	p.derived = derive.Derive(p.input)
	wanted := map[string]bool{}
	for _, w := range p.derived.Wants {
		p.wants = append(p.wants, &want{Want: w})
		wanted[w.Name] = true
	}
	p.tenants = make(map[string]*v1alpha1.EgressTenant, len(p.input.Tenants))
	for _, t := range p.input.Tenants {
		p.tenants[t.Name] = t
		if !wanted[t.Name] {
			p.leaving = append(p.leaving, t)
		}
	}
	p.routes = make(map[string]derive.Route, len(p.input.Routes))
	for _, r := range p.input.Routes {
		p.routes[r.Name] = r
	}
	return p
}

// allocate stores addresses for those that need some, and brings all other
// EgressTenants up to date.
func (p *pass) allocate(ctx context.Context) error {
	byPool := map[string][]*want{}
	var rest []*want
	for _, w := range p.wants {
		if w.Allocate {
			byPool[w.Pool] = append(byPool[w.Pool], w)
		} else {
			rest = append(rest, w)
		}
	}
	// The rest first: it includes those that give something up.
	errs := []error{p.each(ctx, rest, p.refresh)}
	for _, pool := range slices.Sorted(maps.Keys(byPool)) {
		errs = append(errs, p.allocatePool(ctx, pool, byPool[pool]))
		errs = append(errs, p.each(ctx, byPool[pool], func(ctx context.Context, w *want) error {
			if w.refused == nil {
				return nil
			}
			return p.refresh(ctx, w)
		}))
	}
	for _, w := range p.wants {
		if o := w.object(); o != nil {
			p.tenants[w.Name] = o
		}
	}
	return errors.Join(errs...)
}

// refresh writes members and group of a tenant whose addresses do not change,
// and the EgressTenant of a refused request, which has none.
func (p *pass) refresh(ctx context.Context, w *want) error {
	spec := v1alpha1.EgressTenantSpec{
		Pool: w.Pool, Namespaces: w.names(), GatewayGroup: w.Group,
		GatewayIPs: []v1alpha1.Address{}, EgressIPs: []v1alpha1.Address{},
	}
	if w.Held() {
		spec.Pool = w.HavePool
		spec.GatewayIPs, spec.EgressIPs = addresses(w.Have.Gateway), addresses(w.Have.Egress)
	}
	return p.write(ctx, w, spec)
}

// tell hands the bus what the gateways should know: all tenants that have
// addresses, and of those that leave the ones given.
func (p *pass) tell(leaving []*v1alpha1.EgressTenant) {
	var s State
	next := map[string]tenant.Tenant{}
	for _, w := range p.wants {
		switch old, known := p.last[w.Name]; {
		case w.serving():
			next[w.Name] = p.record(w.object())
		case known:
			// It is still asked for, but its EgressTenant was deleted by hand and
			// could not be replaced yet. Traffic goes on meanwhile.
			next[w.Name] = old
		}
	}
	for _, t := range leaving {
		if _, known := p.last[t.Name]; known || len(t.Spec.EgressIPs) > 0 {
			next[t.Name] = p.record(t)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next)) {
		s.Tenants = append(s.Tenants, next[name])
	}
	s.Nodes = p.derived.Nodes
	p.last = next
	if len(p.derived.Missing) > 0 && p.mustWait() {
		return
	}
	p.sync.set(s)
}

// mustWait says whether telling the bus now would take records of nodes away
// that were published by an earlier leader and must stay.
func (p *pass) mustWait() bool {
	if p.published {
		return false
	}
	// Only the time counts in which the records could have been read.
	if !p.upSince.IsZero() && p.time.Sub(p.upSince) >= publishedWait {
		return false
	}
	p.due(p.time.Add(time.Second))
	return true
}

func (p *pass) record(t *v1alpha1.EgressTenant) tenant.Tenant {
	g := derive.GrantOf(t)
	return tenant.Tenant{
		Schema: tenant.Schema, Cluster: p.ClusterName, Name: t.Name, UID: string(t.UID), Generation: t.Generation,
		Namespaces: t.Spec.Namespaces, Pool: t.Spec.Pool, Group: t.Spec.GatewayGroup,
		GatewayIPs: g.Gateway, EgressIPs: g.Egress,
	}
}

// remember keeps what the next pass compares with.
func (p *pass) remember() {
	p.nodes = make(map[string]tenant.Node, len(p.derived.Nodes))
	for _, n := range p.derived.Nodes {
		p.nodes[n.Name] = n
	}
	p.held = make(map[string]holding, len(p.tenants))
	for name, t := range p.tenants {
		if len(t.Spec.EgressIPs) > 0 {
			p.held[name] = holding{t.Spec.Pool, derive.GrantOf(t)}
		}
	}
}

// holding is what a tenant held in an earlier pass.
type holding struct {
	pool  string
	grant allocate.Grant
}

// each calls fn for all items, a few at a time, and joins their errors.
func (p *pass) each(ctx context.Context, list []*want, fn func(context.Context, *want) error) error {
	return inParallel(ctx, list, fn)
}

func inParallel[T any](ctx context.Context, list []T, fn func(context.Context, T) error) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, item := range list {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fn(ctx, item); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return summarized(errs)
}

// summarized joins errors, but only so many that a log line stays readable.
func summarized(errs []error) error {
	const shown = 3
	if len(errs) <= shown {
		return errors.Join(errs...)
	}
	return errors.Join(append(slices.Clone(errs[:shown]), fmt.Errorf("and %d more", len(errs)-shown))...)
}
