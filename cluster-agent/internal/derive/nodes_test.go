// SPDX-License-Identifier: Apache-2.0

package derive_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/shared/tenant"
)

const (
	subnets = "k8s.ovn.org/node-subnets"
	gateway = "k8s.ovn.org/l3-gateway-config"
	primary = "k8s.ovn.org/node-primary-ifaddr"
	hybrid  = "k8s.ovn.org/hybrid-overlay-node-subnet"
)

func byText() cmp.Options {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty(),
	}
}

func record(name, subnetTexts, addressTexts string) tenant.Node {
	n := tenant.Node{Schema: 1, Cluster: "c1", Name: name}
	for _, s := range strings.Fields(subnetTexts) {
		n.Subnets = append(n.Subnets, netip.MustParsePrefix(s))
	}
	for _, s := range strings.Fields(addressTexts) {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(s))
	}
	return n
}

func TestOneNode(t *testing.T) {
	const pods = `{"default":["10.128.0.0/23"]}`
	for _, c := range []struct {
		name        string
		annotations map[string]string
		podCIDRs    []string
		internal    []string
		subnets     string // empty: no record
		addresses   string
		problem     string // the reason
	}{
		{"the usual one", map[string]string{subnets: pods, gateway: `{"default":{"mode":"shared","mac-address":"0a:58:c0:a8:63:15","ip-addresses":["192.168.99.21/24"],"next-hops":["192.168.99.1"],"vlan-id":"0"}}`}, nil, nil, "10.128.0.0/23", "192.168.99.21", ""},
		{"the old form: strings", map[string]string{subnets: `{"default":"10.128.0.0/23"}`, gateway: `{"default":{"mode":"local","ip-address":"192.168.99.21/24"}}`}, nil, nil, "10.128.0.0/23", "192.168.99.21", ""},
		{"both families, IPv4 first", map[string]string{subnets: `{"default":["fd01:0:0:2::/64","10.130.0.0/23"]}`, gateway: `{"default":{"ip-addresses":["fd99::21/64","192.168.99.21/24"]}}`}, nil, nil, "10.130.0.0/23 fd01:0:0:2::/64", "192.168.99.21 fd99::21", ""},
		{"other networks do not count", map[string]string{subnets: `{"blue":["10.200.0.0/24"],"default":["10.128.0.0/23"]}`, gateway: `{"blue":{"ip-addresses":["1.2.3.4/24"]},"default":{"ip-addresses":["192.168.99.21/24"]}}`}, nil, nil, "10.128.0.0/23", "192.168.99.21", ""},
		{"a second bridge for external traffic", map[string]string{subnets: pods, gateway: `{"default":{"ip-addresses":["192.168.99.21/24"],"exgw-interface-id":"br-ex1_n","exgw-ip-addresses":["192.168.77.21/24"]}}`}, nil, nil, "10.128.0.0/23", "192.168.77.21", ""},
		{"no gateway configuration: the primary address", map[string]string{subnets: pods, primary: `{"ipv4":"192.168.99.21/24"}`}, nil, []string{"10.9.9.9"}, "10.128.0.0/23", "192.168.99.21", ""},
		{"neither: InternalIP", map[string]string{subnets: pods}, nil, []string{"192.168.99.21", "fd99::21"}, "10.128.0.0/23", "192.168.99.21 fd99::21", ""},
		{"each family on its own", map[string]string{subnets: pods, gateway: `{"default":{"ip-addresses":["192.168.99.21/24"]}}`, primary: `{"ipv4":"192.168.99.22/24","ipv6":"fd99::21/64"}`}, nil, nil, "10.128.0.0/23", "192.168.99.21 fd99::21", ""},
		{"gateway disabled", map[string]string{subnets: pods, gateway: `{"default":{"mode":""}}`}, nil, []string{"192.168.99.21"}, "10.128.0.0/23", "192.168.99.21", ""},
		{"no OVN at all: podCIDRs", nil, []string{"10.244.1.0/24", "fd44::/64"}, []string{"192.168.99.21"}, "10.244.1.0/24 fd44::/64", "192.168.99.21", ""},
		{"OVN has not got to it yet: podCIDRs mean nothing", map[string]string{"k8s.ovn.org/node-id": "3"}, []string{"10.244.1.0/24"}, []string{"192.168.99.21"}, "", "", ""},
		{"no address yet", map[string]string{subnets: pods}, nil, nil, "", "", ""},
		{"the default network is missing", map[string]string{subnets: `{"blue":["10.200.0.0/24"]}`}, nil, []string{"192.168.99.21"}, "", "", ""},
		{"a Windows node is none of OVN's", map[string]string{hybrid: "10.132.0.0/24"}, nil, []string{"192.168.99.21"}, "", "", ""},
		{"no JSON", map[string]string{subnets: `10.128.0.0/23`}, nil, []string{"192.168.99.21"}, "", "", "InvalidNodeAnnotation"},
		{"a number for a subnet", map[string]string{subnets: `{"default":5}`}, nil, []string{"192.168.99.21"}, "", "", "InvalidNodeAnnotation"},
		{"an address for a subnet", map[string]string{subnets: `{"default":["10.128.2.0"]}`}, nil, []string{"192.168.99.21"}, "", "", "InvalidNodeAnnotation"},
		{"host bits", map[string]string{subnets: `{"default":["10.128.2.1/23"]}`}, nil, []string{"192.168.99.21"}, "", "", "InvalidNodeAnnotation"},
		{"everything for a subnet", map[string]string{subnets: `{"default":["0.0.0.0/0"]}`}, nil, []string{"192.168.99.21"}, "", "", "InvalidNodeAnnotation"},
		{"a gateway configuration that is none", map[string]string{subnets: pods, gateway: `{"default":{"ip-addresses":["192.168.99.400/24"]}}`}, nil, []string{"192.168.99.21"}, "", "", "InvalidNodeAnnotation"},
		{"a next hop that is none", map[string]string{subnets: pods, primary: `{"ipv4":"127.0.0.1/8"}`}, nil, nil, "", "", "InvalidNodeAnnotation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := derive.Node{Name: "n1", UID: "u1", Annotations: c.annotations, PodCIDRs: c.podCIDRs, InternalIPs: c.internal}
			out := derive.Derive(derive.Input{Cluster: "c1", Nodes: []derive.Node{node}})
			var want []tenant.Node
			if c.subnets != "" {
				want = []tenant.Node{record("n1", c.subnets, c.addresses)}
			}
			if diff := cmp.Diff(want, out.Nodes, byText()); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			got := ""
			for _, p := range out.Problems {
				got = p.Reason
				if p.Kind != "Node" || p.UID != "u1" || p.Message == "" {
					t.Errorf("problem %+v", p)
				}
			}
			if got != c.problem {
				t.Errorf("problem %q, want %q: %+v", got, c.problem, out.Problems)
			}
			// Whatever is wrong now: what was good before stays.
			last := record("n1", "10.99.0.0/24", "192.168.99.99")
			out = derive.Derive(derive.Input{Cluster: "c1", Nodes: []derive.Node{node}, LastNodes: map[string]tenant.Node{"n1": last}})
			if c.subnets == "" && c.annotations[hybrid] == "" && (len(out.Nodes) != 1 || out.Nodes[0].Subnets[0] != last.Subnets[0]) {
				t.Errorf("the last good record was not kept: %+v", out.Nodes)
			}
		})
	}
}

func ovnNode(name, subnet, address string) derive.Node {
	return derive.Node{Name: name, UID: "uid-" + name, Annotations: map[string]string{subnets: `{"default":["` + subnet + `"]}`}, InternalIPs: []string{address}}
}

// One subnet has one node. While a subnet moves, the API tells of its two nodes
// one after the other.
func TestASubnetMoves(t *testing.T) {
	a, b := "192.168.99.21", "192.168.99.22"
	last := map[string]tenant.Node{"a": record("a", "10.128.0.0/23", a), "b": record("b", "10.128.2.0/23", b)}
	for _, c := range []struct {
		name   string
		nodes  []derive.Node
		want   []tenant.Node
		reason string
	}{
		{"both have their own", []derive.Node{ovnNode("a", "10.128.0.0/23", a), ovnNode("b", "10.128.2.0/23", b)},
			[]tenant.Node{last["a"], last["b"]}, ""},
		{"b claims that of a, who has not let go: a keeps it", []derive.Node{ovnNode("a", "10.128.0.0/23", a), ovnNode("b", "10.128.0.0/23", b)},
			[]tenant.Node{last["a"], record("b", "", b)}, "NodeSubnetTaken"},
		{"b claims that of a, who has lost its annotation: b gets it", []derive.Node{{Name: "a", Annotations: map[string]string{"k8s.ovn.org/node-id": "1"}}, ovnNode("b", "10.128.0.0/23", b)},
			[]tenant.Node{record("a", "", a), record("b", "10.128.0.0/23", b)}, "NodeSubnetTaken"},
		{"b claims that of a, who has gone", []derive.Node{ovnNode("b", "10.128.0.0/23", b)},
			[]tenant.Node{record("b", "10.128.0.0/23", b)}, ""},
		{"a and b exchange theirs", []derive.Node{ovnNode("a", "10.128.2.0/23", a), ovnNode("b", "10.128.0.0/23", b)},
			[]tenant.Node{record("a", "10.128.2.0/23", a), record("b", "10.128.0.0/23", b)}, ""},
		{"a larger one covers both", []derive.Node{ovnNode("a", "10.128.0.0/23", a), ovnNode("b", "10.128.0.0/14", b)},
			[]tenant.Node{last["a"], record("b", "", b)}, "NodeSubnetTaken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := derive.Derive(derive.Input{Cluster: "c1", Nodes: c.nodes, LastNodes: last})
			if diff := cmp.Diff(c.want, out.Nodes, byText()); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			got := ""
			for _, p := range out.Problems {
				got = p.Reason
			}
			if got != c.reason {
				t.Errorf("problem %q, want %q", got, c.reason)
			}
		})
	}
}

func TestANodeThatSaysNothingIsMissing(t *testing.T) {
	out := derive.Derive(derive.Input{Cluster: "c1", Nodes: []derive.Node{{Name: "new", Annotations: map[string]string{"k8s.ovn.org/node-id": "1"}}}})
	if diff := cmp.Diff([]string{"new"}, out.Missing); diff != "" || len(out.Problems) != 0 {
		t.Errorf("missing %v, problems %v", out.Missing, out.Problems)
	}
}
