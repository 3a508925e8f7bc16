// SPDX-License-Identifier: Apache-2.0

package derive_test

import (
	"strings"
	"testing"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
)

func ranges(name string, egress, gateway []v1alpha1.Range) *v1alpha1.EgressPool {
	return pool(name, "", "", func(p *v1alpha1.EgressPool) { p.Spec.EgressRanges, p.Spec.GatewayRanges = egress, gateway })
}

var (
	v4Pool   = pool("v4", "192.0.2.0/28", "10.1.0.0/28")
	v6Pool   = pool("v6", "2001:db8::/64", "fd00:1::/64")
	dualPool = ranges("dual", []v1alpha1.Range{"192.0.2.16/28", "2001:db8:1::/64"}, []v1alpha1.Range{"10.1.0.16/28", "fd00:2::/64"})
)

// cluster has one node with pods of these families.
func cluster(subnetList string, pools ...*v1alpha1.EgressPool) derive.Input {
	n := ovnNode("n1", "", "10.0.0.3")
	n.Annotations[subnets] = `{"default":[` + subnetList + `]}`
	n.InternalIPs = append(n.InternalIPs, "fd00::3")
	return derive.Input{Cluster: "c1", Nodes: []derive.Node{n}, Pools: pools, RouteAPI: true}
}

const (
	only4 = `"10.128.0.0/23"`
	only6 = `"fd01:0:0:1::/64"`
	both  = only4 + "," + only6
)

func TestAPoolWithoutTheClustersFamilies(t *testing.T) {
	for _, c := range []struct {
		subnets string
		pool    *v1alpha1.EgressPool
		want    string
	}{
		{only4, v4Pool, "a=[a] of v4 allocate"},
		{only4, v6Pool, "a=[a] of v6 refused FamilyMismatch"},
		{only4, dualPool, "a=[a] of dual allocate"},
		{only6, v4Pool, "a=[a] of v4 refused FamilyMismatch"},
		{both, v4Pool, "a=[a] of v4 allocate"},
		{both, v6Pool, "a=[a] of v6 allocate"},
	} {
		in := cluster(c.subnets, c.pool)
		in.Namespaces = []derive.Namespace{ns("a", "pool="+c.pool.Name)}
		if got := strings.Join(say(derive.Derive(in)), "; "); got != c.want {
			t.Errorf("pods in %s: %s, want %s", c.subnets, got, c.want)
		}
	}
	in := cluster(only4, v6Pool)
	in.Nodes, in.Namespaces = nil, []derive.Namespace{ns("a", "pool=v6")}
	if got := strings.Join(say(derive.Derive(in)), "; "); got != "a=[a] of v6 allocate" {
		t.Errorf("no node is known, so nothing contradicts: %s", got)
	}
}

// A family that a tenant lacks is told, with what becomes of its traffic.
func TestAllocatedTellsTheMissingFamily(t *testing.T) {
	for _, c := range []struct {
		subnets, pool   string
		egress          []v1alpha1.Address
		reason, message string
	}{
		{only4, "v4", []v1alpha1.Address{"192.0.2.3"}, "Allocated", "192.0.2.3"},
		{both, "dual", []v1alpha1.Address{"192.0.2.17", "2001:db8:1::1"}, "Allocated", "2001:db8:1::1"},
		{both, "v4", []v1alpha1.Address{"192.0.2.3"}, "AllocatedWithoutIPv6", `pool "v4" has no IPv6 addresses`},
		{both, "v6", []v1alpha1.Address{"2001:db8::1"}, "AllocatedWithoutIPv4", `pool "v6" has no IPv4 addresses`},
		{both, "dual", []v1alpha1.Address{"192.0.2.17"}, "AllocatedWithoutIPv6", "had none when the tenant got its own"},
	} {
		out := derive.Derive(cluster(c.subnets, v4Pool, v6Pool, dualPool))
		spec := v1alpha1.EgressTenantSpec{Pool: c.pool, EgressIPs: c.egress, GatewayIPs: []v1alpha1.Address{"10.1.0.5"}}
		v := derive.Allocated(spec, derive.Want{Name: "a", Pool: c.pool}, nil, out)
		if v.Status != "True" || v.Reason != c.reason || !strings.Contains(v.Message, c.message) {
			t.Errorf("%s with %v: %+v; want reason %s and %q", c.pool, c.egress, v, c.reason, c.message)
		}
	}
}

// A link-local range is refused in words that say so.
func TestLinkLocalRanges(t *testing.T) {
	for _, p := range []*v1alpha1.EgressPool{pool("a", "2001:db8::/64", "fe80::/64"), pool("a", "fe80::1-fe80::9", "fd00::/64"), pool("a", "192.0.2.0/28", "169.254.0.0/24")} {
		out := derive.Derive(derive.Input{Cluster: "c1", Pools: []*v1alpha1.EgressPool{p}})
		if ready, _ := out.Pools["a"].PoolVerdicts(); ready.Reason != "InvalidRange" || !strings.Contains(ready.Message, "is link-local") {
			t.Errorf("%v %v: %+v", p.Spec.EgressRanges, p.Spec.GatewayRanges, ready)
		}
	}
}
