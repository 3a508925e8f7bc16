// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"egress-gateway.io/cluster-agent/internal/publish"
	"egress-gateway.io/shared/tenant"
)

// fakeBus is NATS and the gateways behind it, in memory.
type fakeBus struct {
	mu        sync.Mutex
	state     publish.State
	syncs     int
	fail      error
	away      bool
	statuses  map[string][]tenant.Status
	summaries []tenant.Summary
	published []tenant.Node
	unknown   bool
}

func newFakeBus() *fakeBus { return &fakeBus{statuses: map[string][]tenant.Status{}} }

func (b *fakeBus) Sync(_ context.Context, s publish.State) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away || b.fail != nil {
		return errors.Join(b.fail, errors.New("nats is away"))
	}
	for _, t := range s.Tenants {
		if err := t.Validate(); err != nil {
			return err
		}
	}
	b.state, b.syncs = s, b.syncs+1
	return nil
}

func (b *fakeBus) Connected() bool { b.mu.Lock(); defer b.mu.Unlock(); return !b.away }

func (b *fakeBus) PublishedNodes() ([]tenant.Node, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.published, !b.unknown
}

func (b *fakeBus) Statuses() map[string][]tenant.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string][]tenant.Status{}
	for k, v := range b.statuses {
		out[k] = slices.Clone(v)
	}
	return out
}

func (b *fakeBus) Summaries() []tenant.Summary {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.summaries)
}

func (b *fakeBus) change(fn func(*fakeBus)) { b.mu.Lock(); defer b.mu.Unlock(); fn(b) }

// told returns what the gateways know of a tenant.
func (b *fakeBus) told(name string) (tenant.Tenant, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.state.Tenants {
		if t.Name == name {
			return t, true
		}
	}
	return tenant.Tenant{}, false
}

// serve has a gateway acknowledge a tenant.
func (b *fakeBus) serve(gateway, group string, t tenant.Tenant) {
	b.change(func(b *fakeBus) {
		b.summaries = []tenant.Summary{{Schema: 1, Gateway: gateway, Group: group, Time: time.Now()}}
		b.statuses[t.Name] = []tenant.Status{{Schema: 1, Gateway: gateway, Cluster: "test", Name: t.Name, UID: t.UID, Generation: t.Generation, Programmed: true}}
	})
}

// fakeAudit remembers what was emitted.
type fakeAudit struct {
	mu     sync.Mutex
	events []publish.AuditEvent
}

func (a *fakeAudit) Emit(events ...publish.AuditEvent) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, events...)
	return nil
}

// kinds returns the kinds of the events about a tenant, in their order.
func (a *fakeAudit) kinds(name string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, e := range a.events {
		if e.Data.Tenant == name {
			out = append(out, e.Kind)
		}
	}
	return out
}

// ids returns the distinct ids of the events of a kind about a tenant.
func (a *fakeAudit) ids(kind, name string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, e := range a.events {
		if e.Kind == kind && e.Data.Tenant == name && !slices.Contains(out, e.ID) {
			out = append(out, e.ID)
		}
	}
	return out
}
