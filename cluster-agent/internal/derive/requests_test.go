// SPDX-License-Identifier: Apache-2.0

package derive_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/shared/tenant"
)

// ns writes a namespace in one line: name, then "pool=p", "tenant=t", "ips=...",
// "deleting", or any other label.
func ns(name string, words ...string) derive.Namespace {
	n := derive.Namespace{Name: name, UID: "uid-" + name, Labels: map[string]string{"kubernetes.io/metadata.name": name}, Annotations: map[string]string{}}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "pool":
			n.Labels[v1alpha1.LabelPool] = v
		case "tenant":
			n.Labels[v1alpha1.LabelTenant] = v
		case "ips":
			n.Annotations[v1alpha1.AnnotationEgressIPs] = v
		case "deleting":
			n.Deleting = true
		default:
			n.Labels[k] = v
		}
	}
	return n
}

func pool(name, egress, gateway string, change ...func(*v1alpha1.EgressPool)) *v1alpha1.EgressPool {
	p := &v1alpha1.EgressPool{ObjectMeta: metav1.ObjectMeta{Name: name, Generation: 1}}
	p.Spec.EgressRanges, p.Spec.GatewayRanges = []v1alpha1.Range{v1alpha1.Range(egress)}, []v1alpha1.Range{v1alpha1.Range(gateway)}
	for _, fn := range change {
		fn(p)
	}
	return p
}

// held is an EgressTenant with addresses from pool "public".
func held(name string, namespaces ...string) *v1alpha1.EgressTenant {
	t := &v1alpha1.EgressTenant{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u"}}
	t.Spec = v1alpha1.EgressTenantSpec{Pool: "public", Namespaces: namespaces, GatewayGroup: "default",
		EgressIPs: []v1alpha1.Address{"192.0.2.5"}, GatewayIPs: []v1alpha1.Address{"10.0.0.5"}}
	return t
}

// say writes the wants and problems as lines.
func say(out derive.Output) []string {
	var lines []string
	for _, w := range out.Wants {
		var members []string
		for _, m := range w.Members {
			members = append(members, m.Name)
		}
		line := fmt.Sprintf("%s=[%s] of %s", w.Name, strings.Join(members, " "), w.Pool)
		for _, a := range w.Ask {
			line += " wants " + a.String()
		}
		if w.Held() {
			line += " holds"
		}
		if w.Allocate {
			line += " allocate"
		}
		if w.Refused != nil {
			line += " refused " + w.Refused.Reason
		}
		lines = append(lines, line)
	}
	for _, p := range out.Problems {
		lines = append(lines, p.Name+": "+p.Reason)
	}
	return lines
}

func TestRequests(t *testing.T) {
	teamOnly := func(p *v1alpha1.EgressPool) {
		p.Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}
	}
	pools := []*v1alpha1.EgressPool{
		pool("public", "192.0.2.0/28", "10.0.0.0/28"), pool("other", "192.0.2.16/28", "10.0.0.16/28"), pool("team", "192.0.2.32/28", "10.0.0.32/28", teamOnly),
		pool("off", "192.0.2.48/28", "10.0.0.48/28", func(p *v1alpha1.EgressPool) { p.Spec.Disabled = true }),
	}
	for _, c := range []struct {
		name       string
		namespaces []derive.Namespace
		existing   []*v1alpha1.EgressTenant
		want       []string
	}{
		{"a namespace without the label asks for nothing", []derive.Namespace{ns("a", "tenant=x")}, nil, nil},
		{"a namespace asks", []derive.Namespace{ns("a", "pool=public")}, nil, []string{"a=[a] of public allocate"}},
		{"with exact addresses", []derive.Namespace{ns("a", "pool=public", "ips=192.0.2.3")}, nil, []string{"a=[a] of public wants 192.0.2.3 allocate"}},
		{"it has what it asks for", []derive.Namespace{ns("a", "pool=public")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a] of public holds"}},
		{"it asks for another address", []derive.Namespace{ns("a", "pool=public", "ips=192.0.2.6")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a] of public wants 192.0.2.6 holds allocate"}},
		{"it asks for another pool", []derive.Namespace{ns("a", "pool=other")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a] of other holds allocate"}},
		{"unknown pool", []derive.Namespace{ns("a", "pool=publik")}, nil, []string{"a=[a] of publik refused PoolNotFound"}},
		{"disabled pool", []derive.Namespace{ns("a", "pool=off")}, nil, []string{"a=[a] of off refused PoolDisabled"}},
		{"not allowed", []derive.Namespace{ns("a", "pool=team")}, nil, []string{"a=[a] of team refused NamespaceNotAllowed"}},
		{"allowed", []derive.Namespace{ns("a", "pool=team", "team=a")}, nil, []string{"a=[a] of team allocate"}},
		{"malformed annotation", []derive.Namespace{ns("a", "pool=public", "ips=1.2.3")}, nil, []string{"a=[a] of public refused InvalidAnnotation"}},
		{"malformed, but it has something", []derive.Namespace{ns("a", "pool=public", "ips=1.2.3")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a] of public holds refused InvalidAnnotation"}},
		{"the pool is gone, but it has something", []derive.Namespace{ns("a", "pool=publik")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a] of publik holds refused PoolNotFound"}},
		{"a tenant's name that is none", []derive.Namespace{ns("a", "pool=public", "tenant=Not_A_Name")}, nil, []string{"a: InvalidTenantName"}},
		{"a namespace that is being deleted gets nothing new", []derive.Namespace{ns("a", "pool=public", "deleting")}, nil, []string{"a=[a] of public refused NamespaceTerminating"}},
		{"and keeps what it has until it is gone", []derive.Namespace{ns("a", "pool=public", "deleting")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a] of public holds"}},

		{"two share, both say so", []derive.Namespace{ns("b", "pool=public", "tenant=x"), ns("a", "pool=public", "tenant=x")}, nil, []string{"x=[a b] of public allocate"}},
		{"one of them says which address", []derive.Namespace{ns("a", "pool=public", "tenant=x"), ns("b", "pool=public", "tenant=x", "ips=192.0.2.3")}, nil, []string{"x=[a b] of public wants 192.0.2.3 allocate"}},
		{"they disagree on the pool", []derive.Namespace{ns("a", "pool=public", "tenant=x"), ns("b", "pool=other", "tenant=x")}, nil, []string{"x=[a b] of public refused NamespacesDisagree"}},
		{"they disagree on the address", []derive.Namespace{ns("a", "pool=public", "tenant=x", "ips=192.0.2.3"), ns("b", "pool=public", "tenant=x", "ips=192.0.2.4")}, nil, []string{"x=[a b] of public refused NamespacesDisagree"}},
		{"one may not use the pool: the other goes on", []derive.Namespace{ns("a", "pool=team", "tenant=x", "team=a"), ns("b", "pool=team", "tenant=x")}, nil, []string{"x=[a] of team allocate", "b: NamespaceNotAllowed"}},
		{"a namespace borrows another's name", []derive.Namespace{ns("a", "pool=public"), ns("b", "pool=public", "tenant=a")}, nil, []string{"a=[a] of public allocate", "b: TenantNameTaken"}},
		{"also when the other has an address already", []derive.Namespace{ns("a", "pool=public"), ns("b", "pool=public", "tenant=a")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a] of public holds", "b: TenantNameTaken"}},
		{"the name belonged to others before its namesake came", []derive.Namespace{ns("a", "pool=public"), ns("b", "pool=public", "tenant=a")}, []*v1alpha1.EgressTenant{held("a", "b")}, []string{"a=[b] of public holds", "a: TenantNameTaken"}},
		{"both say so: they share", []derive.Namespace{ns("a", "pool=public", "tenant=a"), ns("b", "pool=public", "tenant=a")}, []*v1alpha1.EgressTenant{held("a", "a")}, []string{"a=[a b] of public holds"}},
		{"a newcomer can not change the others' address", []derive.Namespace{ns("a", "pool=public", "tenant=x"), ns("b", "pool=public", "tenant=x", "ips=192.0.2.9")}, []*v1alpha1.EgressTenant{held("x", "a")}, []string{"x=[a] of public holds", "b: NamespacesDisagree"}},
		{"nor their pool", []derive.Namespace{ns("b", "pool=public", "tenant=x"), ns("a", "pool=other", "tenant=x")}, []*v1alpha1.EgressTenant{held("x", "b")}, []string{"x=[b] of public holds", "a: NamespacesDisagree"}},
		{"a member leaves", []derive.Namespace{ns("a", "pool=public", "tenant=x"), ns("b")}, []*v1alpha1.EgressTenant{held("x", "a", "b")}, []string{"x=[a] of public holds"}},
		{"a refused tenant has no incumbents", []derive.Namespace{ns("a", "pool=public"), ns("b", "pool=public", "tenant=a")},
			[]*v1alpha1.EgressTenant{{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Spec: v1alpha1.EgressTenantSpec{Namespaces: []string{"b"}}}}, []string{"a=[a] of public allocate", "b: TenantNameTaken"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := derive.Input{Cluster: "c1", Namespaces: c.namespaces, Pools: pools, Tenants: c.existing, RouteAPI: true}
			got := say(derive.Derive(in))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			slices.Reverse(in.Namespaces) // the order of the input means nothing
			if diff := cmp.Diff(got, say(derive.Derive(in))); diff != "" {
				t.Errorf("in reverse order (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOthersRoutes(t *testing.T) {
	selects := func(names ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "kubernetes.io/metadata.name", Operator: "In", Values: names}}}
	}
	base := derive.Input{Cluster: "c1", RouteAPI: true, Pools: []*v1alpha1.EgressPool{pool("public", "192.0.2.0/28", "10.0.0.0/28")},
		Namespaces: []derive.Namespace{ns("a", "pool=public"), ns("b", "pool=public")}}
	t.Run("our own route is no obstacle", func(t *testing.T) {
		in := base
		in.Routes = []derive.Route{{Name: "egress-a", Ours: true, Selector: selects("a")}}
		if got := say(derive.Derive(in)); !slices.Equal(got, []string{"a=[a] of public allocate", "b=[b] of public allocate"}) {
			t.Error(got)
		}
	})
	t.Run("another's is", func(t *testing.T) {
		in := base
		in.Routes = []derive.Route{{Name: "theirs", Selector: selects("a", "z")}}
		out := derive.Derive(in)
		if out.Wants[0].Refused == nil || out.Wants[0].Refused.Reason != derive.ReasonOtherRoute || !out.Wants[1].Allocate {
			t.Error(say(out))
		}
	})
	t.Run("an empty selector selects all", func(t *testing.T) {
		in := base
		in.EgressIPs = []derive.EgressIP{{Name: "all", Selector: &metav1.LabelSelector{}}}
		for _, w := range derive.Derive(in).Wants {
			if w.Refused == nil || w.Refused.Reason != derive.ReasonEgressIP || !strings.Contains(w.Refused.Message, "all") {
				t.Errorf("%s: %+v", w.Name, w.Refused)
			}
		}
	})
	t.Run("what is allocated stays, and the route is told of", func(t *testing.T) {
		in := base
		in.Tenants = []*v1alpha1.EgressTenant{held("a", "a")}
		in.Routes = []derive.Route{{Name: "theirs", Selector: selects("a")}}
		if w := derive.Derive(in).Wants[0]; !w.Held() || w.Refused != nil || w.Foreign == nil {
			t.Errorf("%+v", w)
		}
	})
}

// Two EgressTenants with one address can only be made by hand. The older one
// keeps it; the other gets an address of its own.
func TestDuplicatesByHand(t *testing.T) {
	older, younger := held("b", "b"), held("a", "a")
	older.CreationTimestamp, younger.CreationTimestamp = metav1.Unix(100, 0), metav1.Unix(200, 0)
	younger.Spec.GatewayIPs = []v1alpha1.Address{"10.0.0.6"}
	out := derive.Derive(derive.Input{Cluster: "c1", Pools: []*v1alpha1.EgressPool{pool("public", "192.0.2.0/28", "10.0.0.0/28")},
		Namespaces: []derive.Namespace{ns("a", "pool=public"), ns("b", "pool=public")}, Tenants: []*v1alpha1.EgressTenant{younger, older}})
	if got := say(out); !slices.Equal(got, []string{"a=[a] of public allocate", "b=[b] of public holds"}) {
		t.Error(got)
	}
}

func TestPools(t *testing.T) {
	node := ovnNode("n1", "10.128.0.0/23", "10.0.0.3")
	for _, c := range []struct {
		name   string
		pools  []*v1alpha1.EgressPool
		reason map[string]string // of Ready
	}{
		{"good neighbours", []*v1alpha1.EgressPool{pool("a", "192.0.2.0/28", "10.1.0.0/28"), pool("b", "192.0.2.16/28", "10.1.0.16/28")}, map[string]string{"a": "Usable", "b": "Usable"}},
		{"overlapping egress ranges", []*v1alpha1.EgressPool{pool("a", "192.0.2.0/24", "10.1.0.0/28"), pool("b", "192.0.2.16-192.0.2.17", "10.1.0.16/28")}, map[string]string{"a": "PoolConflict", "b": "PoolConflict"}},
		{"one pool's egress is another's next hops", []*v1alpha1.EgressPool{pool("a", "192.0.2.0/28", "10.1.0.0/28"), pool("b", "10.1.0.4-10.1.0.5", "10.1.0.16/28")}, map[string]string{"a": "PoolConflict", "b": "PoolConflict"}},
		{"a node's address", []*v1alpha1.EgressPool{pool("a", "192.0.2.0/28", "10.0.0.0/28")}, map[string]string{"a": "PoolConflict"}},
		{"a node's address at the edge", []*v1alpha1.EgressPool{pool("a", "192.0.2.0/28", "10.0.0.3-10.0.0.9")}, map[string]string{"a": "PoolConflict"}},
		{"a gateway's address", []*v1alpha1.EgressPool{pool("a", "198.51.100.0/28", "10.1.0.0/28")}, map[string]string{"a": "PoolConflict"}},
		{"a pool that contradicts itself", []*v1alpha1.EgressPool{pool("a", "192.0.2.9-192.0.2.1", "10.1.0.0/28")}, map[string]string{"a": "InvalidRange"}},
		{"no pool has a conflict with itself", []*v1alpha1.EgressPool{pool("a", "192.0.2.0/28", "192.0.2.0/29")}, map[string]string{"a": "InvalidRange"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := derive.Derive(derive.Input{Cluster: "c1", Pools: c.pools, Nodes: []derive.Node{node},
				Gateways: []tenant.Summary{{Gateway: "gw1", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.4")}}}})
			got := map[string]string{}
			for name, p := range out.Pools {
				ready, conflict := p.PoolVerdicts()
				got[name] = ready.Reason
				if (conflict.Status == metav1.ConditionTrue) != (ready.Reason == "PoolConflict") {
					t.Errorf("%s: %+v, %+v", name, ready, conflict)
				}
			}
			if diff := cmp.Diff(c.reason, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	t.Run("the rest of a pool goes on", func(t *testing.T) {
		p := pool("a", "192.0.2.0/28", "10.1.0.0/28", func(p *v1alpha1.EgressPool) { p.Spec.EgressRanges = append(p.Spec.EgressRanges, "198.51.100.0/28") })
		out := derive.Derive(derive.Input{Cluster: "c1", Pools: []*v1alpha1.EgressPool{p}, Namespaces: []derive.Namespace{ns("x", "pool=a")},
			Gateways: []tenant.Summary{{Gateway: "gw1", Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.4")}}}})
		if got := out.Pools["a"].UsableEgress; len(got) != 1 || got[0].String() != "192.0.2.0/28" || !out.Wants[0].Allocate {
			t.Errorf("usable %v, %v", got, say(out))
		}
	})
}

func TestAccepted(t *testing.T) {
	hops := []netip.Addr{netip.MustParseAddr("192.168.99.13"), netip.MustParseAddr("fd99::13")}
	const good = ": configured external gateway IPs: 192.168.99.13,fd99::13"
	for _, c := range []struct {
		name     string
		status   string
		messages []string
		reason   string
		mentions string
	}{
		{"all nodes", "Success", []string{"n1" + good, "n2" + good}, "Accepted", "2 nodes"},
		{"and a node that is none of ours", "Success", []string{"n1" + good, "n2" + good, "n3" + good}, "Accepted", ""},
		{"the single zone of old clusters", "Success", []string{"global" + good}, "Accepted", ""},
		{"one is missing", "Success", []string{"n1" + good}, "RoutePending", "n2"},
		{"one has other hops", "Success", []string{"n1" + good, "n2: configured external gateway IPs: 192.168.99.13"}, "RoutePending", "n2"},
		{"one has failed", "Fail", []string{"n1" + good, "n2: n2 failed to apply policy: namespace x is already affected by another policy"}, "RouteFailed", "another policy"},
		{"failed without a word", "Fail", nil, "RouteFailed", ""},
		{"not confirmed", "", []string{"n1" + good, "n2" + good}, "RoutePending", "confirm"},
		{"nothing yet", "", nil, "RoutePending", "n1, n2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ok, reason, message := derive.Accepted(derive.Route{Status: c.status, Messages: c.messages}, hops, []string{"n1", "n2"})
			if reason != c.reason || ok != (reason == "Accepted") || !strings.Contains(message, c.mentions) {
				t.Errorf("%t, %s, %q; want %s and %q", ok, reason, message, c.reason, c.mentions)
			}
		})
	}
}

func TestProgrammed(t *testing.T) {
	object := held("x", "x")
	object.Generation = 7
	status := func(gw, uid string, generation int64, programmed bool) tenant.Status {
		return tenant.Status{Gateway: gw, Name: "x", UID: uid, Generation: generation, Programmed: programmed, Reason: "NoRoute", Message: "m"}
	}
	gateways := map[string]derive.Gateway{}
	for name, g := range map[string]struct {
		group string
		alive bool
	}{"gw1": {"default", true}, "gw2": {"default", true}, "dead": {"default", false}, "far": {"other", true}} {
		gateways[name] = derive.Gateway{Summary: tenant.Summary{Gateway: name, Group: g.group}, Alive: g.alive}
	}
	for _, c := range []struct {
		name     string
		statuses []tenant.Status
		gateways map[string]derive.Gateway
		gateway  string
		status   metav1.ConditionStatus
		reason   string
	}{
		{"acknowledged", []tenant.Status{status("gw1", "u", 7, true)}, gateways, "gw1", "True", "Programmed"},
		{"by one, while the other lags", []tenant.Status{status("gw1", "u", 6, true), status("gw2", "u", 7, true)}, gateways, "gw2", "True", "Programmed"},
		{"nothing yet", nil, gateways, "", "False", "Pending"},
		{"an older generation", []tenant.Status{status("gw1", "u", 6, true)}, gateways, "gw1", "False", "Pending"},
		{"another object of that name", []tenant.Status{status("gw1", "old", 7, true)}, gateways, "gw1", "False", "Pending"},
		{"it failed", []tenant.Status{status("gw1", "u", 7, false)}, gateways, "", "False", "NoRoute"},
		{"a gateway of another group", []tenant.Status{status("far", "u", 7, true)}, gateways, "", "False", "Pending"},
		{"a gateway that has fallen silent", []tenant.Status{status("dead", "u", 7, true)}, gateways, "dead", "Unknown", "GatewaySilent"},
		{"no gateway at all", nil, nil, "", "False", "NoGateway"},
	} {
		t.Run(c.name, func(t *testing.T) {
			gateway, v := derive.Programmed(object, c.statuses, c.gateways)
			if gateway != c.gateway || v.Status != c.status || v.Reason != c.reason || v.Message == "" {
				t.Errorf("%q, %+v; want %q, %s, %s", gateway, v, c.gateway, c.status, c.reason)
			}
		})
	}
}

// Size does not matter much: a pass over 4,000 tenants takes little time.
func TestLargeCluster(t *testing.T) {
	in := derive.Input{Cluster: "c1", RouteAPI: true, Pools: []*v1alpha1.EgressPool{pool("public", "10.1.0.0/16", "10.2.0.0/16")}}
	for i := range 4000 {
		name := fmt.Sprint("ns-", i)
		in.Namespaces = append(in.Namespaces, ns(name, "pool=public"))
		x := held(name, name)
		x.Spec.EgressIPs = []v1alpha1.Address{v1alpha1.Address(fmt.Sprintf("10.1.%d.%d", i/250, i%250))}
		x.Spec.GatewayIPs = []v1alpha1.Address{v1alpha1.Address(fmt.Sprintf("10.2.%d.%d", i/250, i%250))}
		in.Tenants = append(in.Tenants, x)
	}
	for i := range 1000 {
		in.Nodes = append(in.Nodes, ovnNode(fmt.Sprint("n", i), fmt.Sprintf("10.%d.%d.0/24", 128+i/250, i%250), fmt.Sprintf("172.16.%d.%d", i/250, 1+i%250)))
	}
	begin := time.Now()
	out := derive.Derive(in)
	took := time.Since(begin)
	t.Logf("4,000 tenants and 1,000 nodes: %s", took)
	if len(out.Wants) != 4000 || len(out.Nodes) != 1000 || len(out.Problems) != 0 {
		t.Errorf("%d wants, %d nodes, %d problems", len(out.Wants), len(out.Nodes), len(out.Problems))
	}
	if took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}
