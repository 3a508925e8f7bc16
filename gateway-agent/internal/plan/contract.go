// SPDX-License-Identifier: Apache-2.0

// Package plan decides what the kernel of a gateway VM has to look like, and
// by which ordered steps it gets there. It is pure: values in, values out; no
// I/O, no clock, no logger. All functions are safe for concurrent use.
package plan

import (
	"net/netip"

	"egress-gateway.io/shared/tenant"
)

// Host is what a plan has to know of the gateway VM. The first three fields
// come from the configuration, PodNetworks too; kernel.Facts fills the others.
type Host struct {
	// Internal and External are the names of the NICs towards the cluster and
	// towards the outside.
	Internal, External string
	// MarkMask holds the bits of the packet and connection mark that are ours:
	// contiguous, at least 12. A tenant's mark is its number shifted to them.
	MarkMask uint32
	// OnLink are the subnets of the internal NIC: a next hop must be in one.
	OnLink []netip.Prefix
	// Own are the VM's addresses that are not ours to manage, on any NIC: no
	// tenant may have one of them.
	Own []netip.Addr
	// IPv6 says that the VM's kernel and tools can serve IPv6 tenants.
	IPv6 bool
	// Advertised are those of the two NICs that take router advertisements.
	Advertised []string
	// PodNetworks widen what the guards cover, beyond what the records say.
	PodNetworks []netip.Prefix
}

// Numbered is a tenant with the number that names its link and its mark:
// 1 to MaxNumber, unique on the VM, kept for the life of the tenant. Number 0
// means that none was free: Desired reports it.
type Numbered struct {
	Number int
	// Held tells that the tenant's record vanished without an order to remove
	// it: it is served on, but loses its addresses to any tenant that is not.
	Held bool
	tenant.Tenant
}

// MaxNumber is the highest tenant number: three hex digits.
const MaxNumber = 0xfff

// Input is everything that a plan is made from. Tombstones (Released) are
// ignored: a tenant that is not in Tenants is removed.
type Input struct {
	Host     Host
	Tenants  []Numbered
	Nodes    []tenant.Node
	Networks []tenant.Network
	// Conflicts are addresses that another host has, with its MAC; a tenant is
	// not served in the family of such an address.
	Conflicts map[netip.Addr]string
	// Spills are exceptions for addresses whose ports are used up.
	Spills []Spill
	// Rest6 says that this is a part, and that a tenant of the rest has IPv6.
	Rest6 bool
}

// ReasonConflict is the reason of a problem with an address that another host
// has as well.
const ReasonConflict = "AddressConflict"

// Reasons of problems that one tenant has because of another.
const (
	reasonTaken       = "AddressTaken"
	reasonNumberTaken = "NumberTaken"
	reasonNoNumber    = "NoNumber"
)

// Problem is something that keeps one tenant or node from being served as its
// record asks. The others go on.
type Problem struct {
	Cluster, Tenant, Node string // Tenant or Node is set, or neither for the host
	Reason                string // CamelCase, stable
	Warning               bool   // it is served as asked all the same
	Message               string // what and where, with the remedy
}

// TenantID is how a tenant is named in link aliases, rule comments, steps and
// the maps of this package: "<cluster>/<name>".
func TenantID(cluster, name string) string { return cluster + "/" + name }
