// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// seen names the views that a memory was merged from, by cluster. It is nil
// unless the merge of a view that differs from them in some tenants is about
// these tenants only: nothing is held, was refused, or waits.
type seen map[string]uint64

// final tells whether nothing of m waits: for the bus to tell more, or for a
// number to become free.
func (m Merged) final() bool {
	_, adopted := m.Memory.Clusters[adoptedCluster]
	return !adopted && len(m.Refused) == 0 && len(m.Memory.HeldRefs()) == 0 && len(m.unnumbered()) == 0
}

// seenNow returns the views' names, nil if one has none.
func seenNow(views map[string]View) seen {
	out := make(seen, len(views))
	for cluster, v := range views {
		if v.Serial == 0 || !v.Confirmed || len(v.Bad) > 0 {
			return nil
		}
		out[cluster] = v.Serial
	}
	return out
}

// news returns the cluster whose view is new, "" if there is none. ok is false
// unless what is new are the tenants that its view names.
func (s seen) news(views map[string]View) (cluster string, ok bool) {
	if s == nil || len(views) != len(s) {
		return "", false
	}
	for name, v := range views {
		switch {
		case v.Serial == s[name] && v.Serial != 0:
		case cluster == "" && v.Serial != 0 && v.Before == s[name] && v.Before != 0 && v.Confirmed && len(v.Bad) == 0:
			cluster = name
		default:
			return "", false
		}
	}
	return cluster, true
}

// mergeChange is Merge, where prev was merged from what seen names, and news has
// found that v, a view of cluster, is all that is new. It returns what the merge
// changes, and costs no look at the other tenants. ok is false where it takes
// one, and then only Merge will do.
func mergeChange(prev Memory, cluster string, v View, group string) (d *delta, ok bool) {
	before, known := prev.Clusters[cluster]
	if !known || v.Generation < before.Generation || v.Network == nil && before.Network != nil {
		return nil, false
	}
	cd := &clusterDelta{Generation: v.Generation, Network: before.Network, Tenants: make(map[string]*Entry, len(v.Changed))}
	d = &delta{Clusters: map[string]*clusterDelta{cluster: cd}, Departing: slices.Clone(prev.Departing)}
	for _, name := range v.Changed {
		t, shown := v.tenant(name)
		if !shown {
			return nil, false // whether it goes depends on how many do
		}
		old, known := before.Tenants[name]
		serve, gone := judge(old, t, group)
		if known && gone != "" {
			d.Departing = append(d.Departing, old.removal(Ref{cluster, name}, gone))
		}
		switch e := old.follow(t); {
		case serve && !(known && e.equal(old)):
			cd.Tenants[name] = &e
		case !serve && known:
			cd.Tenants[name] = nil
		}
	}
	sortRemovals(d.Departing)
	return d, true
}

// unnumbered are the tenants without a number.
func (m Merged) unnumbered() (out []Ref) {
	for cluster, c := range m.Memory.Clusters {
		for name, e := range c.Tenants {
			if e.Number == 0 {
				out = append(out, Ref{cluster, name})
			}
		}
	}
	return out
}

// number gives each tenant that has none its number.
func (m *Merged) number(have plan.State) {
	d := delta{Clusters: map[string]*clusterDelta{}, Departing: m.Memory.Departing}
	for _, r := range m.unnumbered() {
		e, _ := m.Memory.Entry(r)
		d.put(m.Memory, r, e)
	}
	d.assignNumbers(m.Memory, have)
	d.apply(&m.Memory)
}
