// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/shared/tenant"
)

// record returns a tenant of cluster c1 whose addresses end in n.
func record(name string, n int) tenant.Tenant {
	return tenant.Tenant{
		Schema: tenant.Schema, Cluster: "c1", Name: name, UID: "uid-" + name, Generation: 1,
		Namespaces: []string{name}, Pool: "public", Group: "g1",
		GatewayIPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 99, byte(n)})},
		EgressIPs:  []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 55, byte(n)})},
	}
}

func node(name string, n int) tenant.Node {
	return tenant.Node{
		Schema: tenant.Schema, Cluster: "c1", Name: name,
		Subnets:   []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128, byte(2 * n), 0}), 23)},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 99, byte(20 + n)})},
	}
}

// names returns count tenants t01, t02, ...
func many(count int) map[string]tenant.Tenant {
	out := map[string]tenant.Tenant{}
	for i := 1; i <= count; i++ {
		t := record(fmt.Sprintf("t%02d", i), 100+i)
		out[t.Name] = t
	}
	return out
}

func remember(generation int64, tenants map[string]tenant.Tenant, nodes ...tenant.Node) Memory {
	c := Cluster{Generation: generation, Tenants: map[string]Entry{}, Nodes: map[string]tenant.Node{}}
	number := 0
	for _, name := range sortedKeys(tenants) {
		number++
		c.Tenants[name] = Entry{Number: number, Record: tenants[name]}
	}
	for _, n := range nodes {
		c.Nodes[n.Name] = n
	}
	return Memory{Clusters: map[string]Cluster{"c1": c}}
}

func inOrder(tenants map[string]tenant.Tenant) (out []tenant.Tenant) {
	for _, name := range sortedKeys(tenants) {
		out = append(out, tenants[name])
	}
	return out
}

func view(generation int64, tenants map[string]tenant.Tenant, nodes ...tenant.Node) View {
	v := View{Confirmed: true, Generation: generation, Tenants: inOrder(tenants), Nodes: map[string]tenant.Node{}}
	for _, n := range nodes {
		v.Nodes[n.Name] = n
	}
	return v
}

func with(m map[string]tenant.Tenant, change func(map[string]tenant.Tenant)) map[string]tenant.Tenant {
	out := map[string]tenant.Tenant{}
	for k, v := range m {
		out[k] = v
	}
	change(out)
	return out
}

func without(m map[string]tenant.Tenant, names ...string) map[string]tenant.Tenant {
	return with(m, func(m map[string]tenant.Tenant) {
		for _, n := range names {
			delete(m, n)
		}
	})
}

func tombstone(t tenant.Tenant) tenant.Tenant {
	return tenant.Tenant{Schema: tenant.Schema, Cluster: t.Cluster, Name: t.Name, UID: t.UID, Generation: t.Generation + 1, Released: true}
}

// outcome is a Merged in the words of a table: tenants as name or name(held),
// removals as name:reason, problems as subject:reason.
type outcome struct {
	Serves, Nodes, Removed, Held, Refused []string
	Generation                            int64
}

func outcomeOf(m Merged) outcome {
	var o outcome
	c := m.Memory.Clusters["c1"]
	o.Generation = c.Generation
	for _, r := range m.Memory.Refs() {
		e, _ := m.Memory.Entry(r)
		s := fmt.Sprintf("%s#%d", r.Name, e.Number)
		if e.Held {
			s += "(held)"
		}
		o.Serves = append(o.Serves, s)
	}
	o.Nodes = sortedKeys(c.Nodes)
	for _, r := range m.Memory.Departing {
		o.Removed = append(o.Removed, r.Name+":"+r.Reason)
	}
	for _, r := range m.Held {
		o.Held = append(o.Held, r.Name)
	}
	for _, p := range m.Refused {
		o.Refused = append(o.Refused, p.Cluster+"/"+p.Tenant+p.Node+":"+p.Reason)
	}
	return o
}

func TestMergeOneCluster(t *testing.T) {
	blue, red := record("blue", 13), record("red", 14)
	both := map[string]tenant.Tenant{"blue": blue, "red": red}
	bad := func(v View, keys ...tenant.Key) View {
		v.Bad = map[tenant.Key]error{}
		for _, k := range keys {
			v.Bad[k] = errors.New("garbage")
		}
		return v
	}
	unconfirmed := func(v View) View { v.Confirmed = false; return v }
	tests := []struct {
		name string
		prev Memory
		view View
		ok   map[Ref]string
		want outcome
	}{
		{"first view", Memory{}, view(7, both, node("n1", 0)), nil,
			outcome{Serves: []string{"blue#0", "red#0"}, Nodes: []string{"n1"}, Generation: 7}},
		{"nothing new keeps the numbers", remember(7, both, node("n1", 0)), view(7, both, node("n1", 0)), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Nodes: []string{"n1"}, Generation: 7}},
		{"tombstone removes", remember(7, both), view(8, with(both, func(m map[string]tenant.Tenant) { m["blue"] = tombstone(blue) })), nil,
			outcome{Serves: []string{"red#2"}, Removed: []string{"blue:Released"}, Generation: 8}},
		{"tombstone of an unknown tenant is nothing", remember(7, without(both, "blue")), view(8, with(both, func(m map[string]tenant.Tenant) { m["blue"] = tombstone(blue) })), nil,
			outcome{Serves: []string{"red#1"}, Generation: 8}},
		{"another tenant of the same name replaces", remember(7, both), view(8, with(both, func(m map[string]tenant.Tenant) { b := blue; b.UID = "uid-new"; m["blue"] = b })), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Removed: []string{"blue:Replaced"}, Generation: 8}},
		{"a missing record removes", remember(7, both), view(8, without(both, "blue")), nil,
			outcome{Serves: []string{"red#2"}, Removed: []string{"blue:RecordGone"}, Generation: 8}},
		{"another group removes", remember(7, both), view(8, with(both, func(m map[string]tenant.Tenant) { b := blue; b.Group = "g2"; m["blue"] = b })), nil,
			outcome{Serves: []string{"red#2"}, Removed: []string{"blue:MovedToOtherGroup"}, Generation: 8}},
		{"another group's tenant is not ours", Memory{}, view(8, with(both, func(m map[string]tenant.Tenant) { b := blue; b.Group = "g2"; m["blue"] = b })), nil,
			outcome{Serves: []string{"red#0"}, Generation: 8}},
		{"an unconfirmed view changes nothing", remember(7, both, node("n1", 0)), unconfirmed(view(9, nil)), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Nodes: []string{"n1"}, Generation: 7}},
		{"an older snapshot is refused", remember(7, both), view(6, without(both, "blue")), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Refused: []string{"c1/:SnapshotOlder"}, Generation: 7}},
		{"an undecodable record keeps its predecessor", remember(7, both), bad(view(8, without(both, "blue")), tenant.TenantKey("c1", "blue")), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Refused: []string{"c1/blue:BadRecord"}, Generation: 8}},
		{"an undecodable new record is reported", remember(7, both), bad(view(8, both), tenant.TenantKey("c1", "green")), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Refused: []string{"c1/green:BadRecord"}, Generation: 8}},
		{"an undecodable record does not keep an address that another has now", remember(7, without(both, "red")),
			bad(view(8, map[string]tenant.Tenant{"red": record("red", 13)}), tenant.TenantKey("c1", "blue")), nil,
			outcome{Serves: []string{"red#0"}, Removed: []string{"blue:AddressReassigned"}, Refused: []string{"c1/blue:BadRecord"}, Generation: 8}},
		{"an undecodable node keeps its predecessor", remember(7, both, node("n1", 0)), bad(view(8, both), tenant.NodeKey("c1", "n1")), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Nodes: []string{"n1"}, Refused: []string{"c1/n1:BadRecord"}, Generation: 8}},
		{"an undecodable node yields its subnet", remember(7, both, node("n1", 0)), bad(view(8, both, node("n2", 0)), tenant.NodeKey("c1", "n1")), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Nodes: []string{"n2"}, Refused: []string{"c1/n1:BadRecord"}, Generation: 8}},
		{"a missing node goes at once", remember(7, both, node("n1", 0), node("n2", 1)), view(8, both, node("n2", 1)), nil,
			outcome{Serves: []string{"blue#1", "red#2"}, Nodes: []string{"n2"}, Generation: 8}},
		{"the operator can not remove what is not held", remember(7, both), view(7, both), map[Ref]string{{"c1", "blue"}: "uid-blue"},
			outcome{Serves: []string{"blue#1", "red#2"}, Generation: 7}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := outcomeOf(Merge(tt.prev, map[string]View{"c1": tt.view}, "g1", tt.ok))
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestMergeMassRemoval(t *testing.T) {
	const served = 30 // 20 % are 6
	tests := []struct {
		missing int
		held    bool
	}{{1, false}, {6, false}, {7, true}, {30, true}}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%d of %d", tt.missing, served), func(t *testing.T) {
			all := many(served)
			gone := sortedKeys(all)[:tt.missing]
			prev := remember(1, all, node("n1", 0))
			m := Merge(prev, map[string]View{"c1": view(2, without(all, gone...))}, "g1", nil)
			if got, want := len(m.Held) == tt.missing, tt.held; got != want {
				t.Errorf("held %v, removed %d", m.Held, len(m.Memory.Departing))
			}
			if tt.held == (len(m.Memory.Departing) > 0) {
				t.Errorf("held %d and removed %d at once", len(m.Held), len(m.Memory.Departing))
			}
			if _, kept := m.Memory.Clusters["c1"].Nodes["n1"]; kept != tt.held {
				t.Errorf("node kept: %v; a held tenant needs the way back to its pods, others do not", kept)
			}
		})
	}
}

func TestMergeFewTenants(t *testing.T) {
	five, six := many(5), many(6)
	if m := Merge(remember(1, five), map[string]View{"c1": view(2, nil)}, "g1", nil); len(m.Memory.Departing) != 5 {
		t.Errorf("5 of 5: removed %d, want 5", len(m.Memory.Departing))
	}
	if m := Merge(remember(1, six), map[string]View{"c1": view(2, nil)}, "g1", nil); len(m.Held) != 6 {
		t.Errorf("6 of 6: held %d, want 6", len(m.Held))
	}
}

// TestMergeHeldStory follows held tenants through all their ends.
func TestMergeHeldStory(t *testing.T) {
	all := many(10)
	keys := sortedKeys(all)
	mem := Merge(remember(1, all), map[string]View{"c1": view(2, without(all, keys...))}, "g1", nil).Memory
	if n := len(mem.HeldRefs()); n != 10 {
		t.Fatalf("%d held, want 10", n)
	}
	step := func(what string, v View, ok map[Ref]string, want outcome) {
		t.Helper()
		m := Merge(mem, map[string]View{"c1": v}, "g1", ok)
		got := outcomeOf(m)
		got.Nodes, want.Generation = nil, v.Generation
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s (-want +got)\n%s", what, diff)
		}
		mem = m.Memory
		mem.Departing = nil // told
	}
	step("six return, the others stay held", view(3, without(all, "t07", "t08", "t09", "t10")), nil, outcome{
		Serves: []string{"t01#1", "t02#2", "t03#3", "t04#4", "t05#5", "t06#6", "t07#7(held)", "t08#8(held)", "t09#9(held)", "t10#10(held)"}})
	step("a tombstone ends one", view(4, with(without(all, "t08", "t09", "t10"), func(m map[string]tenant.Tenant) { m["t07"] = tombstone(all["t07"]) })), nil, outcome{
		Serves:  []string{"t01#1", "t02#2", "t03#3", "t04#4", "t05#5", "t06#6", "t08#8(held)", "t09#9(held)", "t10#10(held)"},
		Removed: []string{"t07:Released"}})
	rest := without(all, "t07", "t08", "t09", "t10")
	step("a confirmed tenant with its address ends one", view(5, with(rest, func(m map[string]tenant.Tenant) { m["new"] = record("new", 108) })), nil, outcome{
		Serves:  []string{"new#0", "t01#1", "t02#2", "t03#3", "t04#4", "t05#5", "t06#6", "t09#9(held)", "t10#10(held)"},
		Removed: []string{"t08:AddressReassigned"}})
	rest["new"] = record("new", 108)
	step("a confirmation for another UID is not for it", view(5, rest), map[Ref]string{{"c1", "t09"}: "other"}, outcome{
		Serves: []string{"new#0", "t01#1", "t02#2", "t03#3", "t04#4", "t05#5", "t06#6", "t09#9(held)", "t10#10(held)"}})
	step("the operator lets one go", view(5, rest), map[Ref]string{{"c1", "t09"}: "uid-t09"}, outcome{
		Serves:  []string{"new#0", "t01#1", "t02#2", "t03#3", "t04#4", "t05#5", "t06#6", "t10#10(held)"},
		Removed: []string{"t09:RemovalConfirmed"}})
}

// TestMergeSmallPortions: a loss of four at a time must not slip below the limit.
func TestMergeSmallPortions(t *testing.T) {
	all := many(10)
	keys := sortedKeys(all)
	mem := Merge(remember(1, all), map[string]View{"c1": view(2, without(all, keys[:6]...))}, "g1", nil).Memory
	m := Merge(mem, map[string]View{"c1": view(3, without(all, keys...))}, "g1", nil)
	if len(m.Memory.Departing) != 0 || len(m.Held) != 4 {
		t.Errorf("removed %v, newly held %v; want the last four held too", m.Memory.Departing, m.Held)
	}
}

func TestMergeClustersDoNotMix(t *testing.T) {
	blue := record("blue", 13)
	other := record("blue", 77)
	other.Cluster = "c2"
	prev := remember(5, map[string]tenant.Tenant{"blue": blue})
	m := Merge(prev, map[string]View{
		"c2": {Confirmed: true, Generation: 1, Tenants: []tenant.Tenant{other}},
	}, "g1", nil)
	if diff := cmp.Diff([]Ref{{"c1", "blue"}, {"c2", "blue"}}, m.Memory.Refs()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	m = Merge(m.Memory, map[string]View{"c2": {Confirmed: true, Generation: 2}}, "g1", nil)
	if diff := cmp.Diff([]Ref{{"c1", "blue"}}, m.Memory.Refs()); diff != "" {
		t.Errorf("after c2 is empty (-want +got)\n%s", diff)
	}
	if len(prev.Clusters) != 1 || len(prev.Clusters["c1"].Tenants) != 1 {
		t.Error("Merge changed its input")
	}
}

func TestMergeKeepsTheNetworkUnderATenant(t *testing.T) {
	network := &tenant.Network{Schema: tenant.Schema, Cluster: "c1", PodNetworks: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")}}
	all := many(2)
	v := view(1, all)
	v.Network = network
	mem := Merge(Memory{}, map[string]View{"c1": v}, "g1", nil).Memory
	mem = Merge(mem, map[string]View{"c1": view(2, all)}, "g1", nil).Memory
	if mem.Clusters["c1"].Network == nil {
		t.Error("the network went while tenants are served: the guards would shrink")
	}
	mem = Merge(mem, map[string]View{"c1": view(3, nil)}, "g1", nil).Memory
	if mem.Clusters["c1"].Network != nil {
		t.Error("the network of an empty cluster stays for ever")
	}
}
