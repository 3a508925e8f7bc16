// SPDX-License-Identifier: Apache-2.0

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"sigs.k8s.io/yaml"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/cluster-agent/internal/kube"
	"egress-gateway.io/cluster-agent/internal/kube/kubetest"
)

var server *kubetest.Server // set once by TestMain, before any test

func TestMain(m *testing.M) {
	os.Exit(kubetest.Main(m, func(s *kubetest.Server) { server = s }))
}

func admin(t *testing.T) dynamic.Interface {
	t.Helper()
	c, err := dynamic.NewForConfig(server.Config(kubetest.Admin))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func namespace(t *testing.T, name string) *corev1.Namespace {
	t.Helper()
	c, err := typedcore.NewForConfig(server.Config(kubetest.Admin))
	if err != nil {
		t.Fatal(err)
	}
	ns, err := c.Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// started returns an agent with filled caches, as the service account that the
// manifests give it.
func started(t *testing.T) *kube.Agent {
	t.Helper()
	a, err := kube.New(server.Config(kubetest.Agent), kube.Options{Log: slog.New(slog.DiscardHandler), Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	select {
	case <-a.Started():
	case <-time.After(time.Minute):
		t.Fatal("caches were not filled: ", a.Ready())
	}
	return a
}

// The API server refuses what a pool must not be, in words that help.
func TestPoolValidation(t *testing.T) {
	t.Parallel()
	const gw = "[192.168.99.13-192.168.99.20]"
	for i, c := range []struct {
		name, egress, gateway, more string
		says                        string // empty: accepted
	}{
		{"the usual one", "[192.168.55.113-192.168.55.120]", gw, "", ""},
		{"subnets of both families", "[192.168.55.0/28, 'fd00::/64']", "[192.168.99.0/28, 'fd01::-fd01::ff']", "", ""},
		{"sixteen ranges", "[" + many(16) + "]", gw, "", ""},
		{"all there is", "[192.168.55.0/28]", gw, "{gatewayGroup: edge, mode: takeover, disabled: true, quarantine: 1h30m, namespaceSelector: {matchLabels: {team: a}}}", ""},
		{"host bits", "[192.168.55.1/28]", gw, "", "host bits"},
		{"no range at all", "[192.168.55.1]", gw, "", "joined by a dash"},
		{"no address", "[192.168.55.1-192.168.55.300]", gw, "", "joined by a dash"},
		{"rubbish", "[lorem/24]", gw, "", "must be a subnet"},
		{"mixed families in a range", "['192.168.55.1-fd00::1']", gw, "", "one IP family"},
		{"a family without next hops", "[192.168.55.0/28, 'fd00::/64']", gw, "", "IPv6 needs ranges in both"},
		{"the same twice", "[192.168.55.0/28, 192.168.55.0/28]", gw, "", "overlap"},
		{"a subnet within a subnet", "[192.168.55.0/28, 192.168.55.0/29]", gw, "", "overlap"},
		{"a range that reaches into a subnet", "[192.168.55.0/28, 192.168.55.14-192.168.55.20]", gw, "", "overlap"},
		{"egress and next hops overlap", "[192.168.55.0/28]", "[192.168.55.3-192.168.55.4]", "", "overlap"},
		{"none", "[]", gw, "", "at least 1"},
		{"too many", "[" + many(17) + "]", gw, "", "at most 16"},
		{"unknown mode", "[192.168.55.0/28]", gw, "{mode: ecmp}", "takeover"},
		{"a group that is no name", "[192.168.55.0/28]", gw, "{gatewayGroup: Edge_1}", "gatewayGroup"},
		{"a quarantine that is no duration", "[192.168.55.0/28]", gw, "{quarantine: soon}", "quarantine"},
		{"a quarantine of the past", "[192.168.55.0/28]", gw, "{quarantine: -1h}", "between"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			spec := map[string]any{}
			if err := yaml.Unmarshal([]byte(c.more), &spec); err != nil {
				t.Fatal(err)
			}
			for field, text := range map[string]string{"egressRanges": c.egress, "gatewayRanges": c.gateway} {
				var list []any
				if err := yaml.Unmarshal([]byte(text), &list); err != nil {
					t.Fatal(err)
				}
				spec[field] = list
			}
			u := &unstructured.Unstructured{Object: map[string]any{
				"apiVersion": "egress-gateway.io/v1alpha1", "kind": "EgressPool",
				"metadata": map[string]any{"name": fmt.Sprint("valid-", i)}, "spec": spec,
			}}
			got, err := admin(t).Resource(v1alpha1.GroupVersion().WithResource("egresspools")).Create(t.Context(), u, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			switch {
			case c.says == "" && err != nil:
				t.Error(err)
			case c.says != "" && (err == nil || !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.says)):
				t.Errorf("got %v, want a refusal that says %q", err, c.says)
			case c.says == "":
				group, _, _ := unstructured.NestedString(got.Object, "spec", "gatewayGroup")
				rest, _, _ := unstructured.NestedString(got.Object, "spec", "quarantine")
				if group == "" || rest == "" {
					t.Errorf("defaults are missing: group %q, quarantine %q", group, rest)
				}
			}
		})
	}
}

func many(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("10.20.%d.0/24", i))
	}
	return strings.Join(out, ", ")
}

// A route is applied as what we own of it: what others add to it stays, what
// they change of ours comes back, and equal content is not written again.
func TestApplyRoute(t *testing.T) {
	t.Parallel()
	a, ns := started(t), namespace(t, "apply-blue")
	routes := admin(t).Resource(kubetestRoutes())
	want := derive.WantedRoute{
		Name: "egress-apply-blue", Tenant: "apply-blue", Hops: []netip.Addr{netip.MustParseAddr("192.168.99.13"), netip.MustParseAddr("fd99::13")},
		Selector: derive.RouteSelector([]derive.Namespace{{Name: ns.Name}}), Owners: []derive.Owner{{Name: ns.Name, UID: string(ns.UID)}},
	}
	first, err := a.ApplyRoute(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.ApplyRoute(t.Context(), want); err != nil || again != first {
		t.Errorf("equal content was written: version %s, then %s (%v)", first, again, err)
	}
	if _, err := routes.Patch(t.Context(), want.Name, "application/merge-patch+json",
		[]byte(`{"metadata":{"labels":{"their":"own"}},"spec":{"nextHops":{"static":[{"ip":"192.168.99.66","bfdEnabled":true}]}}}`), metav1.PatchOptions{FieldManager: "them"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ApplyRoute(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	u, err := routes.Get(t.Context(), want.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	static, _, _ := unstructured.NestedSlice(u.Object, "spec", "nextHops", "static")
	if len(static) != 2 || static[0].(map[string]any)["ip"] != "192.168.99.13" || static[0].(map[string]any)["bfdEnabled"] != false || u.GetLabels()["their"] != "own" {
		t.Errorf("after the repair: %v, labels %v", static, u.GetLabels())
	}
	found := false
	for _, r := range a.Snapshot().Routes {
		found = found || r.Name == want.Name && r.Ours && !r.BFD && len(r.Hops) == 2 && r.Owners[0] == string(ns.UID)
	}
	if !found {
		t.Error("the snapshot does not show our own write at once")
	}
	if err := a.DeleteRoute(t.Context(), want.Name); err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteRoute(t.Context(), want.Name); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// A route of that name that is somebody else's is not deleted.
func TestForeignRouteIsNotDeleted(t *testing.T) {
	t.Parallel()
	a := started(t)
	routes := admin(t).Resource(kubetestRoutes())
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.ovn.org/v1", "kind": "AdminPolicyBasedExternalRoute", "metadata": map[string]any{"name": "egress-theirs"},
		"spec": map[string]any{
			"from":     map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"x": "y"}}},
			"nextHops": map[string]any{"static": []any{map[string]any{"ip": "192.168.99.99"}}},
		},
	}}
	if _, err := routes.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := a.DeleteRoute(t.Context(), "egress-theirs"); err != nil {
		t.Fatal(err)
	}
	if _, err := routes.Get(t.Context(), "egress-theirs", metav1.GetOptions{}); err != nil {
		t.Errorf("it was deleted: %v", err)
	}
}

// What the service account may not do. What it has to be allowed to, the other
// tests do as that account.
func TestPermissionsAreMinimal(t *testing.T) {
	t.Parallel()
	c, err := typedcore.NewForConfig(server.Config(kubetest.Agent))
	if err != nil {
		t.Fatal(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "forbidden"}}
	_, create := c.Namespaces().Create(t.Context(), ns, metav1.CreateOptions{})
	_, patch := c.Namespaces().Patch(t.Context(), "default", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
	_, node := c.Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "forbidden"}}, metav1.CreateOptions{})
	_, pods := c.Pods("default").List(t.Context(), metav1.ListOptions{})
	_, secrets := c.Secrets("default").List(t.Context(), metav1.ListOptions{})
	for what, err := range map[string]error{"create namespaces": create, "patch namespaces": patch, "create nodes": node, "list pods": pods, "list secrets": secrets} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want it to be forbidden", what, err)
		}
	}
}

func lease(identity string) kube.Lease {
	return kube.Lease{Namespace: "egress-gateway", Name: "egress-cluster-agent", Identity: identity, Duration: 3 * time.Second, Renew: 2 * time.Second, Retry: 200 * time.Millisecond}
}

// One leads; when it ends, it gives the lease up, and the other leads at once.
func TestLead(t *testing.T) {
	t.Parallel()
	a, b := started(t), started(t)
	ctxA, stopA := context.WithCancel(t.Context())
	defer stopA()
	leads := make(chan string, 2)
	results := make(chan error, 2)
	run := func(ctx context.Context, agent *kube.Agent, name string) {
		results <- agent.Lead(ctx, lease(name), func(ctx context.Context) error {
			leads <- name
			<-ctx.Done()
			return nil
		})
	}
	go run(ctxA, a, "a")
	if first := <-leads; first != "a" {
		t.Fatalf("%s leads", first)
	}
	ctxB, stopB := context.WithCancel(t.Context())
	defer stopB()
	go run(ctxB, b, "b")
	select {
	case name := <-leads:
		t.Fatalf("%s leads beside a", name)
	case <-time.After(500 * time.Millisecond):
	}
	stopA()
	if err := <-results; err != nil {
		t.Errorf("a ended: %v", err)
	}
	began := time.Now()
	select {
	case <-leads:
		t.Logf("b leads after %s", time.Since(began))
	case <-time.After(20 * time.Second):
		t.Fatal("b does not lead")
	}

	// Somebody takes the lease away: b must notice, end its work and say so.
	leases := admin(t).Resource(kubetestLeases()).Namespace("egress-gateway")
	for {
		_, err := leases.Patch(t.Context(), "egress-cluster-agent", "application/merge-patch+json",
			[]byte(`{"spec":{"holderIdentity":"thief","leaseDurationSeconds":3600,"renewTime":"2099-01-01T00:00:00.000000Z"}}`), metav1.PatchOptions{})
		if err == nil {
			break
		}
		t.Log(err)
	}
	select {
	case err := <-results:
		if !errors.Is(err, kube.ErrLost) {
			t.Errorf("b lost the lease and returned %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("b has not noticed")
	}
}
