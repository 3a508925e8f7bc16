// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"egress-gateway.io/shared/tenant"
)

// Problem is something wrong with what was read.
type Problem struct {
	// Key names the record, or is empty if the bucket as a whole is meant.
	Key string
	// Since is when it was first seen.
	Since time.Time
	Err   error
}

// View is what a cluster wants, as of one Ready record that fits the records it
// closes. It is shared between callers: read only.
type View struct {
	Ready tenant.Ready
	// Serial names this view among all of its Follower. Before is that of the
	// view from which it differs in nothing but Ready, Heartbeat and the tenants
	// whose names are in Changed; 0 if that is not known.
	Serial, Before uint64
	Changed        []string
	// Tenants are sorted by name; tombstones (Released) are among them.
	Tenants []tenant.Tenant
	// Nodes are sorted by name.
	Nodes   []tenant.Node
	Network *tenant.Network
	// Problems are records that can not be read. If a record of the same key
	// could be read before, that one still stands in this view; otherwise the
	// view lacks it. In neither case was the record removed.
	Problems []Problem
	// Heartbeat is the writer's last sign of life.
	Heartbeat tenant.Heartbeat
}

// record is one decoded record; exactly one of its fields is set.
type record struct {
	tenant  *tenant.Tenant
	node    *tenant.Node
	network *tenant.Network
	err     error
}

// decodeRecord decodes a record that a Ready record's digest covers.
func decodeRecord(k tenant.Key, b []byte) record {
	switch k.Kind {
	case tenant.KindTenant:
		t, err := tenant.DecodeTenant(k, b)
		if err != nil {
			return record{err: err}
		}
		return record{tenant: &t}
	case tenant.KindNode:
		n, err := tenant.DecodeNode(k, b)
		if err != nil {
			return record{err: err}
		}
		return record{node: &n}
	default:
		n, err := tenant.DecodeNetwork(k, b)
		if err != nil {
			return record{err: err}
		}
		return record{network: &n}
	}
}

// digested says whether a key is covered by its cluster's Ready record.
func digested(k tenant.Key) bool {
	return k.Kind == tenant.KindTenant || k.Kind == tenant.KindNode || k.Kind == tenant.KindNetwork
}

// records is the inverse of newView: the decoded records by key.
func (v View) records(cluster string) map[string]record {
	out := make(map[string]record, len(v.Tenants)+len(v.Nodes)+1)
	for i := range v.Tenants {
		out[tenant.TenantKey(cluster, v.Tenants[i].Name).String()] = record{tenant: &v.Tenants[i]}
	}
	for i := range v.Nodes {
		out[tenant.NodeKey(cluster, v.Nodes[i].Name).String()] = record{node: &v.Nodes[i]}
	}
	if v.Network != nil {
		out[tenant.NetworkKey(cluster).String()] = record{network: v.Network}
	}
	return out
}

// after returns the view of ready, where v is the one before it and since then
// nothing but the tenants of names was written, and these can be read.
func (v View) after(ready tenant.Ready, names []string, recs map[string]record) View {
	tenants := slices.Clone(v.Tenants)
	for _, name := range names {
		at, known := slices.BinarySearchFunc(tenants, name, func(t tenant.Tenant, name string) int { return strings.Compare(t.Name, name) })
		switch r, there := recs[tenant.TenantKey(ready.Cluster, name).String()]; {
		case there && known:
			tenants[at] = *r.tenant
		case there:
			tenants = slices.Insert(tenants, at, *r.tenant)
		case known:
			tenants = slices.Delete(tenants, at, at+1)
		}
	}
	return View{Ready: ready, Tenants: tenants, Nodes: v.Nodes, Network: v.Network, Before: v.Serial, Changed: names}
}

// newView builds a view. A record that can not be read is reported, and
// replaced by the one of the same key in before, if there is one: garbage is no
// order to delete.
func newView(ready tenant.Ready, recs map[string]record, before func() map[string]record, now time.Time) View {
	v := View{Ready: ready, Tenants: make([]tenant.Tenant, 0, len(recs))}
	before = sync.OnceValue(before) // seldom needed
	for _, key := range slices.Sorted(maps.Keys(recs)) {
		r := recs[key]
		if r.err != nil {
			v.Problems = append(v.Problems, Problem{Key: key, Since: now, Err: r.err})
			r = before()[key]
		}
		switch {
		case r.tenant != nil:
			v.Tenants = append(v.Tenants, *r.tenant)
		case r.node != nil:
			v.Nodes = append(v.Nodes, *r.node)
		case r.network != nil:
			v.Network = r.network
		}
	}
	return v
}

// problemSet keeps the time at which each problem was first seen, and tells
// whether the set changed.
type problemSet struct{ list []Problem }

// replace takes the problems of now; those that were there before keep their
// time. It reports whether any came or went.
func (s *problemSet) replace(list []Problem) (changed bool) {
	for i, p := range list {
		if j := slices.IndexFunc(s.list, p.same); j >= 0 {
			list[i].Since = s.list[j].Since
		} else {
			changed = true
		}
	}
	changed = changed || len(list) != len(s.list)
	s.list = list
	return changed
}

func (p Problem) same(q Problem) bool { return p.Key == q.Key && p.Err.Error() == q.Err.Error() }
