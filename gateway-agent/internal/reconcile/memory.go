// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// Memory is everything that a gateway has to know to serve its tenants without
// any help from outside. It is what the disk copy holds.
type Memory struct {
	Clusters map[string]Cluster `json:"clusters"`
	// Departing are the tenants that are served no more, but of which the
	// kernel may still hold something: their end has not been told yet.
	Departing []Removal `json:"departing,omitempty"`
}

// Removal is a tenant that this gateway stops serving.
type Removal struct {
	Ref
	UID        string       `json:"uid"`
	Generation int64        `json:"generation"`
	EgressIPs  []netip.Addr `json:"egressIPs,omitempty"`
	Reason     string       `json:"reason"`
}

// Cluster is the part of a Memory that belongs to one cluster. Clusters never
// mix.
type Cluster struct {
	// Generation is that of the Ready record that was applied last; an older
	// one is refused. It outlives the last tenant.
	Generation int64                  `json:"generation"`
	Network    *tenant.Network        `json:"network,omitempty"`
	Tenants    map[string]Entry       `json:"tenants,omitempty"`
	Nodes      map[string]tenant.Node `json:"nodes,omitempty"`
}

// Entry is a tenant that this gateway serves.
type Entry struct {
	// Number names the tenant's link and mark; 0 until one is assigned.
	Number int `json:"number,omitempty"`
	// Held marks a tenant whose record vanished together with too many others:
	// it is kept until it returns, is released or the operator agrees.
	Held bool `json:"held,omitempty"`
	// Adopted marks a tenant that was read back from the kernel because no disk
	// copy was there; it has no UID, and the next confirmed view replaces it.
	Adopted bool `json:"adopted,omitempty"`
	// Told says that the audit knows that this very record was programmed.
	Told   bool          `json:"told,omitempty"`
	Record tenant.Tenant `json:"record"`
}

// Ref names a tenant across clusters.
type Ref struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
}

// String returns cluster/name.
func (r Ref) String() string { return r.Cluster + "/" + r.Name }

// refOf is the inverse of String, which is also the plan's TenantID.
func refOf(id string) Ref {
	cluster, name, _ := strings.Cut(id, "/")
	return Ref{cluster, name}
}

func compareRefs(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Name, b.Name))
}

// View is what the bus shows of one cluster at a moment. What it holds is shared,
// and never changed.
type View struct {
	// Serial names this view of the cluster among all that the process has seen,
	// and Before the one from which it differs in nothing but Ready and the
	// tenants of Changed. 0: not known.
	Serial, Before uint64
	Changed        []string

	// Confirmed says that the records are complete: they match the Ready record
	// of this incarnation of the bucket. All else is only valid if it is set.
	Confirmed  bool
	Generation int64
	Tenants    []tenant.Tenant // sorted by name, tombstones included
	Nodes      map[string]tenant.Node
	Network    *tenant.Network
	// Bad holds the records that could not be decoded, with the reason.
	Bad map[tenant.Key]error
}

// tenant returns the record of this name, if the view shows one.
func (v View) tenant(name string) (tenant.Tenant, bool) {
	at, shown := slices.BinarySearchFunc(v.Tenants, name, func(t tenant.Tenant, name string) int { return strings.Compare(t.Name, name) })
	if !shown {
		return tenant.Tenant{}, false
	}
	return v.Tenants[at], true
}

// Refs returns all tenants, sorted.
func (m Memory) Refs() []Ref {
	var out []Ref
	for cluster, c := range m.Clusters {
		for name := range c.Tenants {
			out = append(out, Ref{cluster, name})
		}
	}
	slices.SortFunc(out, compareRefs)
	return out
}

// Entry returns the tenant r, if it is there.
func (m Memory) Entry(r Ref) (Entry, bool) {
	e, ok := m.Clusters[r.Cluster].Tenants[r.Name]
	return e, ok
}

// HeldRefs returns the held tenants, sorted.
func (m Memory) HeldRefs() []Ref {
	var out []Ref
	for cluster, c := range m.Clusters {
		for name, e := range c.Tenants {
			if e.Held {
				out = append(out, Ref{cluster, name})
			}
		}
	}
	slices.SortFunc(out, compareRefs)
	return out
}

// clone copies the maps, so that a change of the copy leaves m alone. Records
// are shared: they are never changed in place.
func (m Memory) clone() Memory {
	out := Memory{Clusters: make(map[string]Cluster, len(m.Clusters)), Departing: slices.Clone(m.Departing)}
	for name, c := range m.Clusters {
		c.Tenants, c.Nodes = maps.Clone(c.Tenants), maps.Clone(c.Nodes)
		out.Clusters[name] = c
	}
	return out
}

// sortedKeys returns the keys of m in order: every walk is deterministic.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
