// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/test/scenario"
)

// watcher notes each allocation that the API shows, with the time at which it
// was first seen.
type watcher struct {
	cluster *scenario.Cluster
	done    sync.WaitGroup
	mu      sync.Mutex
	seen    []allocation
	known   map[string]bool // uid/generation
	now     map[string]scenario.Tenant
}

func startWatcher(ctx context.Context, c *scenario.Cluster) *watcher {
	w := &watcher{cluster: c, known: map[string]bool{}, now: map[string]scenario.Tenant{}}
	w.done.Go(func() {
		for ctx.Err() == nil {
			// The API server goes and comes; what it shows at the beginning of a
			// watch is all that there is.
			if w.watch(ctx) != nil {
				pause(ctx, 50*time.Millisecond)
			}
		}
	})
	return w
}

func (w *watcher) watch(ctx context.Context) error {
	stream, err := w.cluster.Dynamic.Resource(scenario.Tenants).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	defer stream.Stop()
	for event := range stream.ResultChan() {
		if u, ok := event.Object.(*unstructured.Unstructured); ok && event.Type != watch.Error && event.Type != watch.Bookmark {
			t, err := scenario.FromObject(u)
			if err != nil {
				return err
			}
			w.note(t, event.Type == watch.Deleted)
		}
	}
	return nil
}

func (w *watcher) note(t scenario.Tenant, deleted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := t.Metadata.Name
	w.now[name] = t
	if deleted {
		delete(w.now, name)
		return
	}
	key := fmt.Sprintf("%s/%d", t.Metadata.UID, t.Metadata.Generation)
	if w.known[key] {
		return
	}
	w.known[key] = true
	a := allocation{at: time.Now(), tenant: name, uid: string(t.Metadata.UID), generation: t.Metadata.Generation}
	a.addrs = addrs(t.Spec.EgressIPs)
	w.seen = append(w.seen, a)
}

// tenant returns the latest sight of a tenant.
func (w *watcher) tenant(name string) (scenario.Tenant, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, ok := w.now[name]
	return t, ok
}

func (w *watcher) allocations() []allocation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]allocation(nil), w.seen...)
}

// readAudit returns what the agents told of allocations, and what the gateway
// told of its kernel.
func readAudit(ctx context.Context, w *scenario.World) (seen []allocation, told []change, err error) {
	events, err := w.Audit(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range events {
		name, isTenant := strings.CutPrefix(e.Subject, "tenant/")
		if !isTenant {
			continue
		}
		c, ok, err := changeOf(e, name)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case ok && e.Kind == "alloc":
			seen = append(seen, c.allocation)
		case ok:
			told = append(told, c)
		}
	}
	return seen, told, nil
}

// changeOf reads an event; ok is false for kinds that say nothing about rights.
func changeOf(e bus.AuditEvent, name string) (c change, ok bool, err error) {
	switch e.Kind {
	case "alloc", "programmed", "removed":
	default:
		return change{}, false, nil
	}
	var data struct {
		UID        string   `json:"uid"`
		Generation int64    `json:"generation"`
		EgressIPs  []string `json:"egressIPs"`
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return change{}, false, fmt.Errorf("audit event %s: %w", e.ID, err)
	}
	a := allocation{at: e.Time, tenant: name, uid: data.UID, generation: data.Generation, addrs: addrs(data.EgressIPs)}
	return change{allocation: a, removed: e.Kind == "removed"}, true, nil
}

func addrs(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// pause waits for d: between disturbances, and for a time in which something is
// away, there is nothing to wait for.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
