// SPDX-License-Identifier: Apache-2.0

// Package kernel reads and writes what the gateway owns in the kernel of its
// VM: links, addresses, routes, iptables chains, the nftables guard, sysctls.
// It is the only importer of netlink and go-iptables.
package kernel

import (
	"context"
	"fmt"
	"log/slog"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// Options of a Kernel. The zero value is what production uses.
type Options struct {
	SysctlRoot string // default /proc/sys
	Log        *slog.Logger
}

// Kernel is the kernel of the network namespace that the process runs in. Its
// methods are not safe for concurrent use, except Counters.
type Kernel struct{}

// Failure is a step that could not be carried out.
type Failure struct {
	Step plan.Step
	Err  error
}

// Check is one condition that the VM has to meet. Err is nil if it does.
type Check struct {
	Name   string
	Err    error
	Remedy string // what to do about Err
}

// String returns one line for a person.
func (c Check) String() string {
	if c.Err == nil {
		return c.Name + ": ok"
	}
	return fmt.Sprintf("%s: %v; %s", c.Name, c.Err, c.Remedy)
}

// Counter counts packets and bytes.
type Counter struct{ Packets, Bytes uint64 }

// Traffic is what a tenant's link has carried since it was made.
type Traffic struct{ FromPods, ToLink Counter }

// Counters are the counts for status and metrics.
type Counters struct {
	Tenants map[string]Traffic // by plan.TenantID
	Guards  map[string]Counter // dropped packets, by what the rule is for
}

// New checks nothing of the VM but that the tools can be found: Preflight does.
func New(host plan.Host, o Options) (*Kernel, error) { return &Kernel{}, nil }

// Facts returns the host with OnLink, Own and IPv6 as the VM shows them now.
func (k *Kernel) Facts(ctx context.Context) (plan.Host, error) { return plan.Host{}, nil }

// Preflight tells which conditions the VM does not meet; only failed checks
// are returned.
func (k *Kernel) Preflight(ctx context.Context) []Check { return nil }

// Observe reads what is ours.
func (k *Kernel) Observe(ctx context.Context) (plan.State, error) { return plan.State{}, nil }

// Apply carries out steps whose executor is plan.Kernel, in their order. A
// tenant's step after a failed one of the same tenant is not tried and not
// reported. It writes nothing if there are no steps.
func (k *Kernel) Apply(ctx context.Context, steps []plan.Step) []Failure { return nil }

// Counters reads the counts of all tenants.
func (k *Kernel) Counters(ctx context.Context) (Counters, error) { return Counters{}, nil }

// Backend says which iptables serves: "nf_tables" or "legacy", and its version.
func (k *Kernel) Backend() string { return "" }
