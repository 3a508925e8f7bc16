// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/kube"
	"egress-gateway.io/cluster-agent/internal/kube/kubetest"
	"egress-gateway.io/cluster-agent/internal/publish"
)

var server *kubetest.Server // set once by TestMain, before any test

func TestMain(m *testing.M) {
	os.Exit(kubetest.Main(m, func(s *kubetest.Server) { server = s }))
}

// patience is how long anything may take on a busy machine.
const patience = 2 * time.Minute

// world is a user's and a node's view of the cluster. Tests that use one run one
// after the other: a loop looks after the whole cluster.
type world struct {
	t       *testing.T
	ctx     context.Context
	core    *typedcore.CoreV1Client
	dynamic dynamic.Interface
	bus     *fakeBus
	audit   *fakeAudit
}

func gvr(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}

func poolsResource() schema.GroupVersionResource {
	return v1alpha1.GroupVersion().WithResource("egresspools")
}
func tenantsResource() schema.GroupVersionResource {
	return v1alpha1.GroupVersion().WithResource("egresstenants")
}
func routesResource() schema.GroupVersionResource {
	return gvr("k8s.ovn.org", "v1", "adminpolicybasedexternalroutes")
}

// newWorld returns an empty cluster: what earlier tests left is removed.
func newWorld(t *testing.T) *world {
	t.Helper()
	core, err := typedcore.NewForConfig(server.Config(kubetest.Admin))
	if err != nil {
		t.Fatal(err)
	}
	dyn, err := dynamic.NewForConfig(server.Config(kubetest.Admin))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ctx: t.Context(), core: core, dynamic: dyn, bus: newFakeBus(), audit: &fakeAudit{}}
	list, err := core.Namespaces().List(w.ctx, metav1.ListOptions{})
	w.must(err)
	for _, ns := range list.Items {
		if ns.Labels[v1alpha1.LabelPool] != "" {
			w.label(ns.Name, v1alpha1.LabelPool, nil)
		}
	}
	for _, r := range []schema.GroupVersionResource{poolsResource(), tenantsResource(), routesResource()} {
		w.must(dyn.Resource(r).DeleteCollection(w.ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	}
	w.must(core.Nodes().DeleteCollection(w.ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// until asks again and again until ok says nil.
func (w *world) until(what string, ok func() error) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// agent is a running loop with its own caches.
type agent struct {
	kube    *kube.Agent
	loop    *publish.Loop
	figures *prometheus.Registry
	stop    func()
}

// start runs a loop. wrap may put something between the loop and Kubernetes.
func (w *world) start(wrap func(publish.Cluster) publish.Cluster) *agent {
	w.t.Helper()
	return w.startWith(wrap, time.Now, w.bus)
}

func (w *world) startWith(wrap func(publish.Cluster) publish.Cluster, clock func() time.Time, b publish.Bus) *agent {
	w.t.Helper()
	a := &agent{figures: prometheus.NewRegistry()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("EGRESS_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	var err error
	a.kube, err = kube.New(server.Config(kubetest.Agent), kube.Options{Log: log, Clock: time.Now, Metrics: kube.NewMetrics(a.figures), Changed: func() { a.loop.Poke() }})
	w.must(err)
	cluster := publish.Cluster(a.kube)
	if wrap != nil {
		cluster = wrap(cluster)
	}
	a.loop = publish.New(publish.Options{ClusterName: "test", Cluster: cluster, Bus: b, Audit: w.audit, Log: log, Clock: clock, Metrics: publish.NewMetrics(a.figures)})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.kube.Run(ctx) })
	select {
	case <-a.kube.Started():
	case <-time.After(patience):
		w.t.Fatal("caches were not filled: ", a.kube.Ready())
	}
	wg.Go(func() { _ = a.loop.Run(ctx) })
	a.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.t.Cleanup(a.stop)
	return a
}

func (w *world) pool(name, egress, gateway string, change ...func(*v1alpha1.EgressPool)) {
	w.t.Helper()
	p := &v1alpha1.EgressPool{Spec: v1alpha1.EgressPoolSpec{
		EgressRanges: []v1alpha1.Range{v1alpha1.Range(egress)}, GatewayRanges: []v1alpha1.Range{v1alpha1.Range(gateway)},
		Quarantine: metav1.Duration{Duration: 10 * time.Minute},
	}}
	p.APIVersion, p.Kind, p.Name = v1alpha1.GroupVersion().String(), "EgressPool", name
	for _, fn := range change {
		fn(p)
	}
	o, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
	w.must(err)
	delete(o, "status")
	_, err = w.dynamic.Resource(poolsResource()).Create(w.ctx, &unstructured.Unstructured{Object: o}, metav1.CreateOptions{})
	w.must(err)
}

func (w *world) getPool(name string) v1alpha1.EgressPool {
	w.t.Helper()
	var p v1alpha1.EgressPool
	u, err := w.dynamic.Resource(poolsResource()).Get(w.ctx, name, metav1.GetOptions{})
	w.must(err)
	w.must(runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p))
	return p
}

// namespace makes sure that a namespace exists, and labels it.
func (w *world) namespace(name string, labels map[string]string, annotations ...string) {
	w.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if len(annotations) > 0 {
		ns.Annotations = map[string]string{v1alpha1.AnnotationEgressIPs: annotations[0]}
	}
	_, err := w.core.Namespaces().Create(w.ctx, ns, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		body, _ := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": ns.Annotations}})
		_, err = w.core.Namespaces().Patch(w.ctx, name, types.MergePatchType, body, metav1.PatchOptions{})
	}
	w.must(err)
}

func (w *world) ask(name, pool string) {
	w.namespace(name, map[string]string{v1alpha1.LabelPool: pool})
}

func (w *world) label(name, key string, value any) {
	w.t.Helper()
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{key: value}}})
	w.must(err)
	_, err = w.core.Namespaces().Patch(w.ctx, name, types.MergePatchType, body, metav1.PatchOptions{})
	w.must(err)
}

func (w *world) unlabel(name string) { w.t.Helper(); w.label(name, v1alpha1.LabelPool, nil) }

func (w *world) node(name, subnet, address string) {
	w.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
		"k8s.ovn.org/node-subnets":      fmt.Sprintf(`{"default":[%q]}`, subnet),
		"k8s.ovn.org/l3-gateway-config": fmt.Sprintf(`{"default":{"mode":"shared","ip-addresses":[%q]}}`, address+"/24"),
	}}}
	_, err := w.core.Nodes().Create(w.ctx, n, metav1.CreateOptions{})
	w.must(err)
}

// tenant returns an EgressTenant; nil if there is none.
func (w *world) tenant(name string) *v1alpha1.EgressTenant {
	w.t.Helper()
	u, err := w.dynamic.Resource(tenantsResource()).Get(w.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must(err)
	return w.convert(u)
}

func (w *world) convert(u *unstructured.Unstructured) *v1alpha1.EgressTenant {
	w.t.Helper()
	t := &v1alpha1.EgressTenant{}
	w.must(runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, t))
	return t
}

// allocated waits until a tenant has an address and returns it.
func (w *world) allocated(name string) *v1alpha1.EgressTenant {
	w.t.Helper()
	var t *v1alpha1.EgressTenant
	w.until("tenant "+name+" to be allocated", func() error {
		if t = w.tenant(name); t == nil {
			return errors.New("no EgressTenant")
		}
		return wants(t, v1alpha1.ConditionAllocated, metav1.ConditionTrue, "")
	})
	return t
}

// condition waits until a condition has a status and a reason, and returns its
// message.
func (w *world) condition(name, kind string, status metav1.ConditionStatus, reason string) string {
	w.t.Helper()
	message := ""
	w.until(fmt.Sprintf("%s of %s to be %s (%s)", kind, name, status, reason), func() error {
		t := w.tenant(name)
		if t == nil {
			return errors.New("no EgressTenant")
		}
		if c := meta.FindStatusCondition(t.Status.Conditions, kind); c != nil {
			message = c.Message
		}
		return wants(t, kind, status, reason)
	})
	return message
}

func wants(t *v1alpha1.EgressTenant, kind string, status metav1.ConditionStatus, reason string) error {
	c := meta.FindStatusCondition(t.Status.Conditions, kind)
	if c == nil || c.Status != status || (reason != "" && c.Reason != reason) || c.ObservedGeneration != t.Generation {
		return fmt.Errorf("it is %+v at generation %d", c, t.Generation)
	}
	return nil
}

// route returns a tenant's route; nil if there is none.
func (w *world) route(tenant string) *unstructured.Unstructured {
	w.t.Helper()
	u, err := w.dynamic.Resource(routesResource()).Get(w.ctx, publish.RouteName(tenant), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must(err)
	return u
}

func (w *world) routed(tenant string) *unstructured.Unstructured {
	w.t.Helper()
	var u *unstructured.Unstructured
	w.until("the route of "+tenant, func() error {
		if u = w.route(tenant); u == nil {
			return errors.New("there is none")
		}
		return nil
	})
	return u
}

// accept reports a route as OVN-Kubernetes does.
func (w *world) accept(tenant, hops string, nodes ...string) {
	w.t.Helper()
	u := w.routed(tenant)
	var messages []any
	for _, n := range nodes {
		messages = append(messages, n+": configured external gateway IPs: "+hops)
	}
	w.must(unstructured.SetNestedMap(u.Object, map[string]any{"status": "Success", "messages": messages}, "status"))
	_, err := w.dynamic.Resource(routesResource()).UpdateStatus(w.ctx, u, metav1.UpdateOptions{})
	w.must(err)
}
