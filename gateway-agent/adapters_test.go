// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/tenant"
)

// TestNextView: a view that is made of the one before it is like one that is
// made of everything, whichever views were seen.
func TestNextView(t *testing.T) {
	one := func(name string, generation int64) tenant.Tenant {
		return tenant.Tenant{Cluster: "c1", Name: name, Generation: generation}
	}
	views := []bus.View{
		{Serial: 4, Tenants: []tenant.Tenant{one("blue", 1), one("green", 1), one("red", 1)}, Nodes: []tenant.Node{{Name: "n1"}}},
		{Serial: 4, Tenants: []tenant.Tenant{one("blue", 1), one("green", 1), one("red", 1)}, Nodes: []tenant.Node{{Name: "n1"}}},
		{Serial: 5, Before: 4, Changed: []string{"blue", "green", "white"}, Tenants: []tenant.Tenant{one("blue", 2), one("red", 1), one("white", 1)}, Nodes: []tenant.Node{{Name: "n1"}}},
		{Serial: 7, Before: 6, Changed: []string{"red"}, Tenants: []tenant.Tenant{one("red", 2)}, Nodes: []tenant.Node{{Name: "n1"}}},
		{Serial: 8, Tenants: []tenant.Tenant{one("red", 2)}},
	}
	var last reconcile.View
	for i, v := range views {
		v.Ready.Generation = int64(i)
		if v.Serial == last.Serial {
			v.Ready.Generation = last.Generation
		}
		last = nextView(last, v)
		if d := cmp.Diff(viewOf(v), last, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
			t.Errorf("view %d (-of all +next)\n%s", v.Serial, d)
		}
	}
}
