// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"net/netip"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// Failure is a step that could not be carried out. Err names the step.
type Failure struct {
	Step plan.Step
	Err  error
}

// Kernel is the kernel of the VM. The loop is its only user while it runs.
type Kernel interface {
	// Look returns the kernel as it is now. Afresh, all of it is read; else only
	// what may have changed since the last look.
	Look(ctx context.Context, afresh bool) (Sight, error)
	// Apply carries out steps of the executor plan.Kernel in their order. After
	// a failure of a tenant it leaves out that tenant's further steps; after one
	// of a guard, a sysctl or a chain it makes no link and no address any more.
	// Doing a step twice is harmless. Where somebody else has changed a guard
	// since the last look it stops, and returns the rest of the steps.
	Apply(context.Context, []plan.Step) (failures []Failure, rest []plan.Step)
}

// Sight is what a look came to. It holds until the next Look or Apply.
type Sight struct {
	// Host is the host as configured, completed by what the VM shows.
	Host plan.Host
	// State is what is ours.
	State plan.State
	// Same says that all is as the last look, and the steps since, have left it.
	Same bool
}

// FlowMatch says which connections to delete: those that leave with Egress, but
// not those with KeepMark (0: none is kept), or, without Egress, those that
// carry Mark. Marks are compared within Mask.
type FlowMatch struct {
	Egress         netip.Addr
	KeepMark, Mark uint32
	Mask           uint32
}

// Flows deletes connections; its methods return how many. Deleting what is gone
// already is no error. Safe for concurrent use.
type Flows interface {
	// Delete takes many matches because each look goes over all connections; it
	// returns a count for each of them.
	Delete(context.Context, []FlowMatch) ([]int, error)
	DeleteUntranslated(ctx context.Context, pods []netip.Prefix) (int, error)
}

// Announcer tells neighbours about addresses. Neither method waits.
type Announcer interface {
	// Announce tells about an address that is new at its place.
	Announce(plan.Addr)
	// Keep replaces the set of addresses that are told about regularly.
	Keep([]plan.Addr)
}

// Prober asks the network for addresses before they are claimed. Dev is always
// one of the VM's NICs. It returns the MACs of the hosts that have some of them.
type Prober interface {
	Probe(context.Context, []plan.Addr) (map[netip.Addr]string, error)
}

// Statuses takes what the gateway reports to the clusters: all of it, by the
// keys of tenant.StatusKey and tenant.SummaryKey. Other keys of this gateway
// are withdrawn. The map is the caller's: Sync must not keep it.
type Statuses interface {
	Sync(ctx context.Context, all map[string][]byte) error
	// Renew takes one record after a Sync that took all. It may fail because the
	// others have to be taken again.
	Renew(ctx context.Context, key string, record []byte) error
}

// Event is something to be told for ever.
type Event struct {
	Cluster string // empty: of no cluster
	Kind    string
	Subject string
	// ID makes repetitions of one event recognisable; empty if each is new.
	ID   string
	Data any
}

// The kinds of events.
const (
	EventStart      = "start"
	EventStop       = "stop"
	EventProgrammed = "programmed"
	EventRemoved    = "removed"
	EventFlush      = "conntrack-flush"
	EventProblem    = "problem"
	EventPorts      = "ports"
	EventHeld       = "held"
	EventConnect    = "connect"
	EventLoss       = "loss"
)

// Audit takes events; it returns once they are safe, which is long before they
// are published. Safe for concurrent use.
type Audit interface {
	EmitAll([]Event) error
}
