// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"

	"egress-gateway.io/shared/tenant"
)

// State is the part of a VM's kernel that belongs to the gateway: as it should
// be (Desired) or as it is (kernel.Observe). Nothing that is not ours is in it.
// A nil map counts as an empty one.
type State struct {
	// Sysctls by path below /proc/sys, for example "net/ipv4/ip_forward".
	Sysctls map[string]string
	// MarkMask is the Host's; connections are found by it.
	MarkMask uint32
	Guard    Guard
	Chains   map[ChainID][]string // our chains: rules as iptables-save prints them, without "-A <chain> "
	Hooks    map[ChainID][]Hook   // jumps into our chains, by the built-in chain they stand in
	Links    map[string]Link      // by name
	Addrs    map[Addr]string      // the tenant, which an observed state does not know
	Routes   map[Route]bool
	// Neighbours leads to the links.
	Neighbours Neighbours
}

// ChainID names a chain of iptables (IPv4) or ip6tables (IPv6).
type ChainID struct {
	Family tenant.Family
	Table  string
	Name   string
}

// Hook is a rule of a built-in chain that jumps into one of ours. It has to be
// the first rule and the only one of its kind.
type Hook struct {
	Position int // from 1
	Rule     string
}

// Link is a tenant's macvlan link.
type Link struct {
	Name   string
	Number int
	Tenant string // alias: cluster/name
	Parent string
	MAC    string // lower case, colons
	// IPv6 says that the link speaks IPv6 at all.
	IPv6 bool
	// Ready is false for a link that is down, has another mode than private,
	// takes broadcast or router advertisements, makes up IPv6 addresses, or is
	// not a macvlan: a half-made one.
	Ready bool
}

// Addr is an address of ours, always a host address (/32 or /128): a gateway
// IP on a tenant's link, or an egress IP on the external NIC.
type Addr struct {
	Dev string
	IP  netip.Addr
}

// Route is a return route to the pods of a node.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
	Dev string
}

// Guard is the nftables table that holds the exit and the input guard. The
// zero Guard is no table.
type Guard struct {
	Rules []GuardRule
	Sets  map[string]GuardSet
}

// GuardRule is one rule of the guard. Its comment identifies it: nft prints
// rules differently from version to version.
type GuardRule struct {
	Chain   string
	Comment string
	Text    string // empty in an observed state
}

// GuardSet is a set that rules of the guard refer to: its elements as nft
// takes them, each with its tenant, which an observed state does not know.
type GuardSet map[string]string

// Numbers returns the numbers of the tenants whose links exist, by TenantID.
func (s State) Numbers() map[string]int {
	out := make(map[string]int, len(s.Links))
	for _, l := range s.Links {
		if l.Tenant != "" {
			out[l.Tenant] = l.Number
		}
	}
	return out
}
