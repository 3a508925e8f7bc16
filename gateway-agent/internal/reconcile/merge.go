// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// A snapshot in which more tenants are missing than the larger of these two is
// not believed: a bucket that was lost and rebuilt by a half-blind writer looks
// just like it.
const (
	removeAlways  = 5
	removePercent = 20
)

// Reasons of removals and of problems that Merge reports.
const (
	ReasonReleased    = "Released"          // tombstone
	ReasonMissing     = "RecordGone"        // confirmed to be gone
	ReasonMoved       = "MovedToOtherGroup" // the record names another group
	ReasonConfirmed   = "RemovalConfirmed"  // a held tenant, let go by the operator
	ReasonSuperseded  = "AddressReassigned" // a stale tenant whose address another one has now
	ReasonReplaced    = "Replaced"          // deleted and made anew, with the same name
	ReasonHeld        = "RemovalHeld"       // missing, but kept
	ReasonBadRecord   = "BadRecord"         // not decodable
	ReasonOldSnapshot = "SnapshotOlder"     // an older generation than the applied one
)

// Merged is the result of Merge. Its lists are sorted.
type Merged struct {
	// Memory is what to serve. What was taken away is among its Departing.
	Memory Memory
	// Held are the tenants that became held by this very merge.
	Held []Ref
	// Refused are records and snapshots that were not taken, with the reason.
	Refused []plan.Problem
}

// Merge decides what to serve: prev is what was served, views is what the bus
// shows of each cluster, group is the gateway's own, and confirmed names the
// held tenants, with their UID, whose removal the operator agreed to.
//
//   - A tombstone, or a record of another group, removes at once.
//   - A record that is missing in a confirmed view removes, unless too many are
//     missing at once: then all of them are held, until they return, are
//     released, or the operator agrees.
//   - A cluster without a confirmed view, or with one older than the applied
//     one, keeps everything.
//   - A record that can not be decoded keeps its predecessor.
//   - A kept tenant whose address the cluster has given to another one is
//     removed: it must not hold what it no longer owns.
func Merge(prev Memory, views map[string]View, group string, confirmed map[Ref]string) Merged {
	m := Merged{Memory: prev.clone()}
	m.release(confirmed)
	stale := map[Ref]bool{}
	for _, cluster := range sortedKeys(views) {
		v, before := views[cluster], m.Memory.Clusters[cluster]
		if !v.Confirmed {
			continue
		}
		if v.Generation < before.Generation {
			m.refuse(plan.Problem{Cluster: cluster, Reason: ReasonOldSnapshot, Message: fmt.Sprintf(
				"the bus shows generation %d of cluster %s, but %d is applied: a bucket was restored from a copy, or the writer's clock was set back; everything is kept until a newer one arrives",
				v.Generation, cluster, before.Generation)})
			continue
		}
		m.mergeCluster(cluster, before, v, group, stale)
	}
	for _, r := range m.Memory.HeldRefs() {
		stale[r] = true
	}
	m.dropSuperseded(stale)
	settleAdopted(m.Memory)
	m.sort()
	return m
}

// release lets go of held tenants. The UID must match: the operator agreed to
// the removal of that tenant, not of a later one of the same name.
func (m *Merged) release(confirmed map[Ref]string) {
	for r, uid := range confirmed {
		if e, ok := m.Memory.Entry(r); ok && e.Held && e.Record.UID == uid {
			m.remove(m.Memory.Clusters[r.Cluster], r, ReasonConfirmed)
		}
	}
}

func (m *Merged) mergeCluster(cluster string, before Cluster, v View, group string, stale map[Ref]bool) {
	after := Cluster{
		Generation: v.Generation,
		Tenants:    maps.Clone(before.Tenants),
		Nodes:      maps.Clone(v.Nodes),
		Network:    v.Network,
	}
	if after.Tenants == nil {
		after.Tenants = map[string]Entry{}
	}
	for _, t := range v.Tenants {
		old := before.Tenants[t.Name]
		serve, gone := judge(old, t, group)
		if gone != "" {
			m.remove(after, Ref{cluster, t.Name}, gone)
		}
		if serve {
			after.Tenants[t.Name] = old.follow(t)
		}
	}
	for key, err := range v.Bad {
		m.keepBad(before, key, err, stale)
	}
	m.dropMissing(cluster, before, after, v)
	mergeNodes(before, &after, v)
	if after.Network == nil && (len(after.Tenants) > 0 || len(after.Nodes) > 0) {
		after.Network = before.Network // the guards never shrink under a tenant
	}
	m.Memory.Clusters[cluster] = after
}

// judge decides on a record t in place of old, which is empty if there is none:
// whether it is served, and for which reason old is removed, "" if it is not.
func judge(old Entry, t tenant.Tenant, group string) (serve bool, gone string) {
	switch {
	case t.Released:
		return false, ReasonReleased
	case t.Group != group:
		return false, ReasonMoved
	case old.Record.UID != t.UID && !old.Adopted:
		return true, ReasonReplaced // another one of the same name
	}
	return true, ""
}

// follow returns the entry of t in place of e.
func (e Entry) follow(t tenant.Tenant) Entry {
	same := e.Record.UID == t.UID && e.Record.Generation == t.Generation
	return Entry{Number: e.Number, Told: e.Told && same, Record: t}
}

// keepBad reports a record that could not be decoded. Its predecessor stands
// already, because nothing took it away.
func (m *Merged) keepBad(before Cluster, key tenant.Key, err error, stale map[Ref]bool) {
	p := plan.Problem{Cluster: key.Cluster, Reason: ReasonBadRecord, Message: err.Error()}
	switch key.Kind {
	case tenant.KindTenant:
		p.Tenant = key.Name
		if _, known := before.Tenants[key.Name]; known {
			p.Message += "; its last good content stays in force"
			stale[Ref{key.Cluster, key.Name}] = true
		}
	case tenant.KindNode:
		p.Node = key.Name
	}
	m.refuse(p)
}

// dropMissing removes, or holds, the tenants that a confirmed view does not
// show. What is held already counts as missing too, so that a loss that comes
// in small portions is held like one that comes at once.
func (m *Merged) dropMissing(cluster string, before, after Cluster, v View) {
	var missing []Ref
	for name := range before.Tenants {
		_, shown := v.tenant(name)
		_, bad := v.Bad[tenant.TenantKey(cluster, name)]
		if !shown && !bad {
			missing = append(missing, Ref{cluster, name})
		}
	}
	slices.SortFunc(missing, compareRefs)
	hold := len(missing) > max(removeAlways, len(before.Tenants)*removePercent/100)
	for _, r := range missing {
		e := after.Tenants[r.Name]
		switch {
		case e.Held:
		case hold:
			e.Held = true
			after.Tenants[r.Name] = e
			m.Held = append(m.Held, r)
		default:
			m.remove(after, r, ReasonMissing)
		}
	}
}

// mergeNodes takes the view's nodes. A missing node goes at once, unless a held
// tenant may still need the way back to it; an undecodable one stays. Either
// yields to a node that has its subnet now.
func mergeNodes(before Cluster, after *Cluster, v View) {
	if after.Nodes == nil {
		after.Nodes = map[string]tenant.Node{}
	}
	held := false
	for _, e := range after.Tenants {
		held = held || e.Held
	}
	for name, n := range before.Nodes {
		_, shown := v.Nodes[name]
		_, bad := v.Bad[tenant.NodeKey(n.Cluster, name)]
		if !shown && (bad || held) && !overlapsAny(n, v.Nodes) {
			after.Nodes[name] = n
		}
	}
}

func overlapsAny(n tenant.Node, others map[string]tenant.Node) bool {
	for _, o := range others {
		for _, p := range o.Subnets {
			if slices.ContainsFunc(n.Subnets, p.Overlaps) {
				return true
			}
		}
	}
	return false
}

// dropSuperseded removes each stale tenant that shares an address with one that
// is not stale.
func (m *Merged) dropSuperseded(stale map[Ref]bool) {
	if len(stale) == 0 {
		return
	}
	owner := map[netip.Addr]bool{}
	for _, r := range m.Memory.Refs() {
		if e, _ := m.Memory.Entry(r); !stale[r] {
			for _, a := range addressesOf(e.Record) {
				owner[a] = true
			}
		}
	}
	for _, r := range m.Memory.Refs() {
		e, _ := m.Memory.Entry(r)
		if stale[r] && slices.ContainsFunc(addressesOf(e.Record), func(a netip.Addr) bool { return owner[a] }) {
			m.remove(m.Memory.Clusters[r.Cluster], r, ReasonSuperseded)
		}
	}
}

func addressesOf(t tenant.Tenant) []netip.Addr { return slices.Concat(t.GatewayIPs, t.EgressIPs) }

// remove takes r out of c's map of tenants.
func (m *Merged) remove(c Cluster, r Ref, reason string) {
	e, ok := c.Tenants[r.Name]
	if !ok {
		return
	}
	delete(c.Tenants, r.Name)
	m.Memory.Departing = append(m.Memory.Departing, e.removal(r, reason))
	m.Held = slices.DeleteFunc(m.Held, func(h Ref) bool { return h == r })
}

func (e Entry) removal(r Ref, reason string) Removal {
	return Removal{Ref: r, UID: e.Record.UID, Generation: e.Record.Generation, EgressIPs: e.Record.EgressIPs, Reason: reason}
}

func (m *Merged) refuse(p plan.Problem) { m.Refused = append(m.Refused, p) }

func sortRemovals(list []Removal) {
	slices.SortStableFunc(list, func(a, b Removal) int { return compareRefs(a.Ref, b.Ref) })
}

func (m *Merged) sort() {
	slices.SortFunc(m.Held, compareRefs)
	sortRemovals(m.Memory.Departing)
	slices.SortFunc(m.Refused, func(a, b plan.Problem) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Node, b.Node))
	})
}
