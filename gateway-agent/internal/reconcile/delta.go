// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// delta is what differs between two memories: the second holds all that it
// names, and nothing of what it names as nil.
type delta struct {
	Clusters  map[string]*clusterDelta `json:"clusters,omitempty"`
	Departing []Removal                `json:"departing"` // all of them
}

// clusterDelta is the part of a delta that belongs to one cluster. Generation
// and Network are those of the second memory.
type clusterDelta struct {
	Generation int64                   `json:"generation"`
	Network    *tenant.Network         `json:"network,omitempty"`
	Tenants    map[string]*Entry       `json:"tenants,omitempty"`
	Nodes      map[string]*tenant.Node `json:"nodes,omitempty"`
	network    bool                    // it differs
}

// compare returns what leads from before to after, and nil if nothing does.
func compare(before, after Memory) *delta {
	d := delta{Clusters: make(map[string]*clusterDelta), Departing: after.Departing}
	for name := range before.Clusters {
		if _, stays := after.Clusters[name]; !stays {
			d.Clusters[name] = nil
		}
	}
	for name, c := range after.Clusters {
		old, known := before.Clusters[name]
		cd := clusterDelta{
			Generation: c.Generation, Network: c.Network,
			network: !sameNetwork(old.Network, c.Network),
			Tenants: differing(old.Tenants, c.Tenants, Entry.equal), Nodes: differing(old.Nodes, c.Nodes, sameNode),
		}
		if !known || old.Generation != c.Generation || cd.network || len(cd.Tenants)+len(cd.Nodes) > 0 {
			d.Clusters[name] = &cd
		}
	}
	if len(d.Clusters) == 0 && slices.EqualFunc(before.Departing, after.Departing, Removal.equal) {
		return nil
	}
	return &d
}

// differing returns the values of after that differ from before, and nil for
// those that are gone.
func differing[V any](before, after map[string]V, same func(a, b V) bool) map[string]*V {
	var out map[string]*V
	put := func(name string, v *V) {
		if out == nil {
			out = make(map[string]*V)
		}
		out[name] = v
	}
	for name, v := range after {
		if old, known := before[name]; !known || !same(old, v) {
			put(name, &v)
		}
	}
	for name := range before {
		if _, stays := after[name]; !stays {
			put(name, nil)
		}
	}
	return out
}

// assignNumbers gives each tenant of d that has none its number. The others have
// those that they have in m.
func (d *delta) assignNumbers(m Memory, have plan.State) {
	of := map[string]*Entry{}
	for cluster, c := range d.Clusters {
		if c == nil {
			continue
		}
		for name, e := range c.Tenants {
			if e != nil && e.Number == 0 {
				of[Ref{cluster, name}.String()] = e
			}
		}
	}
	if len(of) == 0 {
		return
	}
	for id, n := range plan.AssignNumbers(d.numbers(m), have.Numbers(), sortedKeys(of)) {
		of[id].Number = n
	}
}

// numbers returns those that are used once d is applied to m.
func (d *delta) numbers(m Memory) map[int]bool {
	used := make(map[int]bool)
	for cluster, c := range m.Clusters {
		cd, differs := d.Clusters[cluster]
		if differs && cd == nil {
			continue
		}
		for name, e := range c.Tenants {
			if differs {
				if _, differs := cd.Tenants[name]; differs {
					continue
				}
			}
			used[e.Number] = true
		}
	}
	for _, cd := range d.Clusters {
		if cd == nil {
			continue
		}
		for _, e := range cd.Tenants {
			if e != nil {
				used[e.Number] = true
			}
		}
	}
	delete(used, 0)
	return used
}

// put adds an entry of a tenant that m has.
func (d *delta) put(m Memory, r Ref, e Entry) {
	if d.Clusters[r.Cluster] == nil {
		c := m.Clusters[r.Cluster]
		d.Clusters[r.Cluster] = &clusterDelta{Generation: c.Generation, Network: c.Network, Tenants: make(map[string]*Entry)}
	}
	d.Clusters[r.Cluster].Tenants[r.Name] = &e
}

// size is how many records a delta holds.
func (d *delta) size() int {
	n := len(d.Departing)
	for _, c := range d.Clusters {
		if c != nil {
			n += len(c.Tenants) + len(c.Nodes)
		}
	}
	return n
}

// apply changes m, whose maps nobody else may use.
func (d *delta) apply(m *Memory) {
	m.Departing = d.Departing
	for name, cd := range d.Clusters {
		if cd == nil {
			delete(m.Clusters, name)
			continue
		}
		c := m.Clusters[name]
		c.Generation, c.Network = cd.Generation, cd.Network
		c.Tenants, c.Nodes = patch(c.Tenants, cd.Tenants), patch(c.Nodes, cd.Nodes)
		m.Clusters[name] = c
	}
}

func patch[V any](to map[string]V, with map[string]*V) map[string]V {
	if to == nil {
		to = make(map[string]V, len(with))
	}
	for name, v := range with {
		if v == nil {
			delete(to, name)
		} else {
			to[name] = *v
		}
	}
	return to
}

// tenants returns the tenants that differ, by TenantID, nil for those that are
// gone, and whether nodes, networks or clusters differ.
func (d *delta) tenants() (changed map[string]*plan.Numbered, others bool) {
	changed = make(map[string]*plan.Numbered)
	if d == nil {
		return changed, false
	}
	for cluster, c := range d.Clusters {
		if c == nil {
			return changed, true
		}
		others = others || c.network || len(c.Nodes) > 0
		for name, e := range c.Tenants {
			if e == nil {
				changed[Ref{cluster, name}.String()] = nil
			} else {
				n := e.numbered()
				changed[Ref{cluster, name}.String()] = &n
			}
		}
	}
	return changed, others
}

func (e Entry) numbered() plan.Numbered {
	return plan.Numbered{Number: e.Number, Held: e.Held, Tenant: e.Record}
}

func (e Entry) equal(o Entry) bool {
	return e.Number == o.Number && e.Held == o.Held && e.Adopted == o.Adopted && e.Told == o.Told && sameTenant(e.Record, o.Record)
}

func sameTenant(a, b tenant.Tenant) bool {
	return a.Generation == b.Generation && a.UID == b.UID && a.Name == b.Name && a.Cluster == b.Cluster && a.Schema == b.Schema &&
		a.Released == b.Released && a.Pool == b.Pool && a.Group == b.Group && slices.Equal(a.Namespaces, b.Namespaces) &&
		slices.Equal(a.GatewayIPs, b.GatewayIPs) && slices.Equal(a.EgressIPs, b.EgressIPs)
}

func sameNode(a, b tenant.Node) bool {
	return a.Name == b.Name && a.Cluster == b.Cluster && a.Schema == b.Schema &&
		slices.Equal(a.Subnets, b.Subnets) && slices.Equal(a.Addresses, b.Addresses)
}

func sameNetwork(a, b *tenant.Network) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Schema == b.Schema && a.Cluster == b.Cluster && slices.Equal(a.PodNetworks, b.PodNetworks)
}

func (r Removal) equal(o Removal) bool {
	return r.Ref == o.Ref && r.UID == o.UID && r.Generation == o.Generation && r.Reason == o.Reason && slices.Equal(r.EgressIPs, o.EgressIPs)
}
