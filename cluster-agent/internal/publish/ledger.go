// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
)

// ledger is what is known for certain about one pool: its object, and all
// EgressTenants as they were at or after that object's version.
//
// Whoever wants to give an address away, or to free one, has to write the pool's
// status first, under its resource version. So as long as the version stays the
// one that we know, nobody else has given away or freed anything, and the ledger
// can be used without asking again; if not, the write fails with a conflict and
// the ledger is loaded anew. That is what makes two leaders at once harmless.
type ledger struct {
	pool        *v1alpha1.EgressPool
	tenants     map[string]*v1alpha1.EgressTenant
	listVersion uint64
}

// ledgers holds one ledger for each pool. It is safe for concurrent use; the
// ledgers that it returns are used by one goroutine at a time.
type ledgers struct {
	cluster Cluster
	mu      sync.Mutex
	byPool  map[string]*ledger
}

func newLedgers(c Cluster) *ledgers { return &ledgers{cluster: c, byPool: map[string]*ledger{}} }

// get returns the ledger of a pool, loading it if need be: the pool first, then
// the tenants, so that none is missed that the pool does not tell of.
func (l *ledgers) get(ctx context.Context, name string) (*ledger, error) {
	l.mu.Lock()
	led := l.byPool[name]
	l.mu.Unlock()
	if led != nil {
		return led, nil
	}
	pool, err := l.cluster.Pool(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("get pool %s: %w", name, err)
	}
	list, version, err := l.cluster.Tenants(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	led = &ledger{pool: pool, tenants: make(map[string]*v1alpha1.EgressTenant, len(list)), listVersion: version}
	for _, t := range list {
		led.tenants[t.Name] = t
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byPool[name] = led
	return led, nil
}

// peek returns the ledger of a pool if there is one.
func (l *ledgers) peek(pool string) *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byPool[pool]
}

func (l *ledgers) forget(pool string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byPool, pool)
}

// wrote notes our own write of a tenant in all ledgers; deleted ones are nil.
func (l *ledgers) wrote(name string, t *v1alpha1.EgressTenant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, led := range l.byPool {
		if t == nil {
			delete(led.tenants, name)
		} else {
			led.tenants[name] = t
		}
	}
}

// compare drops ledgers that the snapshot shows to be outdated: a pool that has
// changed or gone, a tenant that somebody else deleted.
func (l *ledgers) compare(in derive.Input) {
	l.mu.Lock()
	defer l.mu.Unlock()
	pools := make(map[string]*v1alpha1.EgressPool, len(in.Pools))
	for _, p := range in.Pools {
		pools[p.Name] = p
	}
	tenants := make(map[string]bool, len(in.Tenants))
	for _, t := range in.Tenants {
		tenants[t.Name] = true
	}
	for name, led := range l.byPool {
		p := pools[name]
		stale := p == nil || p.UID != led.pool.UID || p.Generation != led.pool.Generation
		for t := range led.tenants {
			stale = stale || !tenants[t]
		}
		if stale {
			delete(l.byPool, name)
		}
	}
}

// attempts is how often a transaction starts again after a conflict.
const attempts = 8

// transact changes the status of a pool: change gets the ledger and a copy of
// the status to work on. It is called again after each conflict. Nothing is
// written if it changes nothing.
func (l *ledgers) transact(ctx context.Context, pool string, change func(*ledger, *v1alpha1.EgressPoolStatus) error) error {
	for range attempts {
		led, err := l.get(ctx, pool)
		if err != nil {
			return err
		}
		next := led.pool.DeepCopy()
		if err := change(led, &next.Status); err != nil {
			return err
		}
		if sameStatus(&led.pool.Status, &next.Status) {
			return nil
		}
		stored, err := l.cluster.UpdatePoolStatus(ctx, next)
		if err == nil {
			led.pool = stored
			return nil
		}
		l.forget(pool)
		if !apierrors.IsConflict(err) {
			return fmt.Errorf("update status of pool %s: %w", pool, err)
		}
	}
	return fmt.Errorf("pool %s: %d conflicts in a row", pool, attempts)
}

// current returns a tenant as the ledger or a newer snapshot knows it.
func (led *ledger) current(name string, seen *v1alpha1.EgressTenant) *v1alpha1.EgressTenant {
	known := led.tenants[name]
	if seen != nil && (known == nil && version(seen) > led.listVersion || known != nil && version(seen) > version(known)) {
		return seen
	}
	return known
}

func version(t *v1alpha1.EgressTenant) uint64 {
	v, err := strconv.ParseUint(t.ResourceVersion, 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// minReservation is how long a reservation stays at least when its tenant does
// not take it: well above the time that a transaction may last, so that no
// EgressTenant is written after its reservation has gone.
const minReservation = 5 * time.Minute

// texts returns addresses as a pool's status holds them.
func texts(list []netip.Addr) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = a.String()
	}
	return out
}

// without returns the addresses of list that are not in other.
func without(list, other []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		if !slices.Contains(other, a) {
			out = append(out, a)
		}
	}
	return out
}
