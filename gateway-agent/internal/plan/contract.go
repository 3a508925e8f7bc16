// SPDX-License-Identifier: Apache-2.0

// Package plan decides what the kernel of a gateway VM has to look like, and
// by which ordered steps it gets there. It is pure: values in, values out; no
// I/O, no clock, no logger.
package plan

import (
	"net/netip"

	"egress-gateway.io/shared/tenant"
)

// Host is what a plan has to know of the gateway VM. It comes from the
// configuration.
type Host struct {
	// Internal and External are the names of the NICs towards the cluster and
	// towards the outside.
	Internal, External string
	// MarkMask holds the bits of the packet and connection mark that are ours:
	// contiguous, at least 12. A tenant's mark is its number shifted to them.
	MarkMask uint32
	// OnLink are the subnets of the internal NIC: a next hop must be in one.
	OnLink []netip.Prefix
	// PodNetworks widen what the guards cover, beyond what the records say.
	PodNetworks []netip.Prefix
}

// Numbered is a tenant with the number that names its link and its mark:
// 1 to MaxNumber, unique on the VM, kept for the life of the tenant.
type Numbered struct {
	Number int
	tenant.Tenant
}

// MaxNumber is the highest tenant number: three hex digits.
const MaxNumber = 0xfff

// Input is everything that a plan is made from.
type Input struct {
	Host     Host
	Tenants  []Numbered
	Nodes    []tenant.Node
	Networks []tenant.Network
}

// Problem is something that keeps one tenant or node from being served as its
// record asks. The others go on.
type Problem struct {
	Cluster, Tenant, Node string // Tenant or Node is set, or neither for the host
	Reason                string // CamelCase, stable
	Message               string // what and where, with the remedy
}
