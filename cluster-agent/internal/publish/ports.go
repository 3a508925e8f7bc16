// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/shared/tenant"
)

// Cluster is the Kubernetes API as the loop needs it. Errors of the API server
// are those of apimachinery's package errors, possibly wrapped. All methods are
// safe for concurrent use.
type Cluster interface {
	// Snapshot returns the caches, with the loop's own writes that they have not
	// seen yet. Its objects must not be changed.
	Snapshot() derive.Input
	// Pool and Tenants ask the API server itself, not a cache. Tenants returns
	// the resource version of the list as well.
	Pool(ctx context.Context, name string) (*v1alpha1.EgressPool, error)
	Tenants(ctx context.Context) (list []*v1alpha1.EgressTenant, version uint64, err error)
	// UpdatePoolStatus fails with a conflict unless p has the latest version.
	UpdatePoolStatus(ctx context.Context, p *v1alpha1.EgressPool) (*v1alpha1.EgressPool, error)
	CreateTenant(ctx context.Context, t *v1alpha1.EgressTenant) (*v1alpha1.EgressTenant, error)
	// UpdateTenant fails with a conflict unless t has the latest version.
	UpdateTenant(ctx context.Context, t *v1alpha1.EgressTenant) (*v1alpha1.EgressTenant, error)
	// DeleteTenant deletes t only in the version given.
	DeleteTenant(ctx context.Context, t *v1alpha1.EgressTenant) error
	// SetTenantStatus replaces the status of the very object t.
	SetTenantStatus(ctx context.Context, t *v1alpha1.EgressTenant, s v1alpha1.EgressTenantStatus) error
	// ApplyRoute writes a route and returns the version of the result.
	ApplyRoute(ctx context.Context, r derive.WantedRoute) (version string, err error)
	DeleteRoute(ctx context.Context, name string) error
	// Event tells the owner of an object; it never blocks and may be lost.
	Event(e derive.Event)
}

// Bus is NATS as the loop needs it.
type Bus interface {
	// Sync makes the bucket hold exactly s. It may take until ctx ends.
	Sync(ctx context.Context, s State) error
	Connected() bool
	// PublishedNodes returns the node records that the bucket holds; false as
	// long as that is not known.
	PublishedNodes() ([]tenant.Node, bool)
	// Statuses returns what the gateways report of this cluster's tenants, by
	// tenant, and Summaries what they report of themselves.
	Statuses() map[string][]tenant.Status
	Summaries() []tenant.Summary
}

// State is what the gateways shall know.
type State struct {
	Tenants []tenant.Tenant
	Nodes   []tenant.Node
}

// Audit is the audit stream. Emit returns once the events will survive a crash
// of the process; two events with one id count once.
type Audit interface {
	Emit(events ...AuditEvent) error
}

// The kinds of audit events that the loop emits.
const (
	KindAlloc   = "alloc"
	KindRelease = "release"
	KindDeny    = "deny"
	KindRoute   = "apb"
	KindReady   = "tenant"
)

// AuditEvent is one fact. ID depends on nothing but the fact.
type AuditEvent struct {
	Kind, Subject, ID string
	Data              AuditData
}

// AuditData is the content of all of the loop's audit events.
type AuditData struct {
	Tenant     string   `json:"tenant"`
	UID        string   `json:"uid,omitempty"`
	Generation int64    `json:"generation,omitempty"`
	Namespaces []string `json:"namespaces,omitempty"`
	Pool       string   `json:"pool,omitempty"`
	Group      string   `json:"group,omitempty"`
	EgressIPs  []string `json:"egressIPs,omitempty"`
	GatewayIPs []string `json:"gatewayIPs,omitempty"`
	Gateway    string   `json:"gateway,omitempty"`
	Operation  string   `json:"operation,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Message    string   `json:"message,omitempty"`
}
