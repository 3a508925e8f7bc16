// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// quickLease makes another cluster-agent take over within seconds.
func quickLease(identity string) map[string]string {
	return map[string]string{
		"CLUSTER_IDENTITY":       identity,
		"CLUSTER_LEASE_DURATION": "3s", "CLUSTER_LEASE_RENEW_DEADLINE": "2s", "CLUSTER_LEASE_RETRY_PERIOD": "500ms",
	}
}

// Proof 5, second part: the leading cluster-agent is killed again and again
// while it allocates. No address is ever given twice, none ever changes.
func TestClusterAgentKilledDuringAllocation(t *testing.T) {
	const rounds, perRound = 6, 15
	w := bareWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.LargePool("large", 2*rounds*perRound)))
	_, err := w.StartGatewayAgent(w.ctx, nil)
	w.must(err)
	seen := w.watchAllocations()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	agents := []string{"agent-a", "agent-b"}
	for _, name := range agents {
		_, err := w.StartClusterAgent(name, quickLease(name))
		w.must(err)
	}
	var all []string
	for round := range rounds {
		var names []string
		for i := range perRound {
			names = append(names, fmt.Sprintf("r%d-n%02d", round, i))
		}
		all = append(all, names...)
		for _, ns := range names {
			w.must(w.CreateNamespace(w.ctx, ns, map[string]string{scenario.LabelPool: "large"}, nil))
		}
		// Somewhere in the middle: after some random number of tenants has got
		// its address, and a random moment.
		some := random.IntN(perRound)
		w.until("some tenants of this round to be allocated", func() (bool, error) { return seen.allocated() >= round*perRound+some, nil })
		w.pause(time.Duration(random.IntN(20)) * time.Millisecond)
		name := w.leader()
		w.must(w.Process(name).Kill())
		// Under a new identity: it can not simply go on with the Lease it held.
		_, err := w.StartClusterAgent(name, quickLease(fmt.Sprintf("%s-%d", name, round)))
		w.must(err)
		w.until("all tenants of this round to be allocated", func() (bool, error) { return seen.allocated() == (round+1)*perRound, nil })
	}
	owner := map[netip.Addr]string{}
	for _, name := range all {
		tenant := w.ready(name)
		for _, a := range []netip.Addr{tenant.EgressIP(), tenant.GatewayIP()} {
			if owner[a] != "" {
				t.Errorf("%s and %s both have %s", owner[a], name, a)
			}
			owner[a] = name
		}
	}
	seen.check()
	w.auditIsWhole()
}

// leader returns the name of the cluster-agent that holds the Lease.
func (w *world) leader() string {
	w.t.Helper()
	var holder string
	w.until("a leader", func() (bool, error) {
		leases, err := w.Core.CoordinationV1().Leases("").List(w.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, l := range leases.Items {
			if l.Spec.HolderIdentity == nil {
				continue
			}
			for _, name := range []string{"agent-a", "agent-b"} {
				if len(*l.Spec.HolderIdentity) >= len(name) && (*l.Spec.HolderIdentity)[:len(name)] == name {
					holder = name
					return true, nil
				}
			}
		}
		return false, nil
	})
	return holder
}

// allocations is all that was ever seen in EgressTenants.
type allocations struct {
	w    *world
	mu   sync.Mutex
	seen map[string][]string // tenant -> the different allocations it had
}

func (w *world) watchAllocations() *allocations {
	w.t.Helper()
	a := &allocations{w: w, seen: map[string][]string{}}
	var done sync.WaitGroup
	done.Go(func() {
		for w.ctx.Err() == nil { // the API server may end a watch at any time
			if err := a.watch(w.ctx); err != nil && w.ctx.Err() == nil {
				t := time.NewTimer(100 * time.Millisecond)
				<-t.C
			}
		}
	})
	w.t.Cleanup(done.Wait)
	return a
}

func (a *allocations) watch(ctx context.Context) error {
	stream, err := a.w.Cluster.Dynamic.Resource(scenario.Tenants).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer stream.Stop()
	for event := range stream.ResultChan() {
		if u, ok := event.Object.(*unstructured.Unstructured); ok && event.Type != watch.Error {
			t, err := scenario.FromObject(u)
			if err != nil {
				return err
			}
			a.record(t)
		}
	}
	return nil
}

func (a *allocations) record(t scenario.Tenant) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !t.EgressIP().IsValid() {
		return
	}
	name := t.Metadata.Name
	if s := fmt.Sprint(t.Spec.EgressIPs, t.Spec.GatewayIPs); !slices.Contains(a.seen[name], s) {
		a.seen[name] = append(a.seen[name], s)
	}
}

func (a *allocations) allocated() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen)
}

func (a *allocations) check() {
	a.w.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, had := range a.seen {
		if len(had) > 1 {
			a.w.t.Errorf("the allocation of %s changed: %v", name, had)
		}
	}
}

// Proof 6: gateway-agent is killed 50 times at random points while tenants come
// and go.
func TestGatewayAgentKilledFiftyTimes(t *testing.T) {
	const kills = 50
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.LargePool("large", 200)))
	stays := w.tenant("stays", "large")
	p := w.pod("node1", "stays")
	w.seenAs(p, stays)
	flow, conn := w.udp(p), w.tcp(p)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	present := map[string]bool{}
	for i := range 12 {
		w.must(w.AddNamespace(w.ctx, fmt.Sprintf("goes-%02d", i)))
	}
	for i := range kills {
		for range 1 + random.IntN(3) {
			ns := fmt.Sprintf("goes-%02d", random.IntN(12))
			if present[ns] {
				w.must(w.Unlabel(w.ctx, ns))
			} else {
				w.must(w.Label(w.ctx, ns, "large"))
			}
			present[ns] = !present[ns]
		}
		w.pause(time.Duration(random.IntN(400)) * time.Millisecond)
		w.must(w.Process(lab.GatewayAgentName).Kill())
		if _, err := w.StartGatewayAgent(w.ctx, nil); err != nil {
			t.Fatalf("start %d: %v", i+1, err)
		}
	}
	// The end state is right: those present are served, nothing else is left.
	var want []string
	for ns, here := range present {
		if here {
			tenant := w.ready(ns)
			w.seenAs(w.pod("node2", ns, lab.SharedNetwork()), tenant)
			want = append(want, ns)
			continue
		}
		w.must(w.WaitGone(w.ctx, ns, soon))
		w.gone("lab/" + ns)
	}
	w.noLeftovers(append(want, "stays"))
	w.unharmed("UDP of a tenant that stayed", flow, stays)
	w.unharmed("TCP of a tenant that stayed", conn, stays)
	w.auditIsWhole()
}

// noLeftovers compares the links and the addresses of the gateway with the
// tenants there are, and nothing else may be there.
func (w *world) noLeftovers(names []string) {
	w.t.Helper()
	w.until(fmt.Sprintf("exactly %d tenants on the gateway", len(names)), func() (bool, error) {
		tenants, err := w.ListTenants(w.ctx)
		if err != nil {
			return false, err
		}
		s, err := w.Gateway()
		if err != nil {
			return false, err
		}
		addresses := map[string]bool{lab.GatewayInternal: true, lab.GatewayExternal: true, lab.GatewayControl: true, "127.0.0.1": true}
		for _, name := range names {
			addresses[tenants[name].EgressIP().String()] = true
			addresses[tenants[name].GatewayIP().String()] = true
		}
		extra, found := extraAddresses(s.Addresses, addresses)
		if len(extra) > 0 || found != len(addresses) {
			return false, fmt.Errorf("%d of %d addresses, and beside them %v", found, len(addresses), extra)
		}
		if n := countLines(s.Links); n != len(names) {
			return false, fmt.Errorf("%d links for %d tenants:\n%s", n, len(names), s.Links)
		}
		return true, nil
	})
}
