// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"net/netip"
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// spillFrom is the part of its ports from which on a target's new connections
// take another address of the tenant. It ends with the watch, at levelWatched.
const spillFrom = 0.90

// spill decides which targets spill over, and where to: to the first address
// of the tenant that has less than half of its ports towards that destination
// in use. Where all have more, the fullest stay as they are: to and fro would
// help nobody.
func (w *PortWatch) spill(full map[PortTarget]int, tenants owners) []plan.Spill {
	next := make(map[PortTarget]netip.Addr)
	for t, used := range full {
		to, spilling := w.spilling[t]
		state := w.levels[t].level
		if !spilling && used < w.of(spillFrom) && state != portsExhausted {
			continue
		}
		ref, known := tenants.byEgress[t.Egress]
		if !known {
			continue
		}
		all := tenant.FamilyOf(t.Egress).Addrs(w.egressOf(ref))
		if !slices.Contains(all, to) || full[towardsFrom(t, to)] >= w.of(spillFrom) {
			to = w.roomFor(t, all, full)
		}
		if to.IsValid() {
			next[t] = to
		}
	}
	w.spilling = next
	out := make([]plan.Spill, 0, len(next))
	for t, to := range next {
		out = append(out, plan.Spill{
			Tenant: tenants.byEgress[t.Egress].String(), Protocol: t.Protocol, Destination: t.Destination, From: t.Egress, To: to,
		})
	}
	slices.SortFunc(out, func(a, b plan.Spill) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), a.Destination.Compare(b.Destination), cmp.Compare(a.Protocol, b.Protocol), a.From.Compare(b.From))
	})
	return out
}

// roomFor returns the first address with room towards the destination of t, or
// none.
func (w *PortWatch) roomFor(t PortTarget, all []netip.Addr, full map[PortTarget]int) netip.Addr {
	for _, a := range all {
		if _, busy := full[towardsFrom(t, a)]; a != t.Egress && !busy {
			return a
		}
	}
	return netip.Addr{}
}

// towardsFrom is the target with the destination of t and another address.
func towardsFrom(t PortTarget, egress netip.Addr) PortTarget {
	t.Egress = egress
	return t
}

func (w *PortWatch) egressOf(ref Ref) []netip.Addr {
	e, _ := w.Snapshot().Memory.Entry(ref)
	return e.Record.EgressIPs
}
