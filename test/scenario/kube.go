// SPDX-License-Identifier: Apache-2.0

// Package scenario does to a lab what users do to a cluster, and looks at it as
// they do: pools, labels, annotations, tenants. The demo, the end-to-end tests
// and the benchmarks are written in its words. It never reaches into the
// agents: only into the Kubernetes API, and into pods.
package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// What users write on a namespace.
const (
	LabelPool           = "egress-gateway.io/pool"
	LabelTenant         = "egress-gateway.io/tenant"
	AnnotationEgressIPs = "egress-gateway.io/egress-ips"
)

// The kinds that the scenarios touch.
var (
	Pools     = schema.GroupVersionResource{Group: "egress-gateway.io", Version: "v1alpha1", Resource: "egresspools"}
	Tenants   = schema.GroupVersionResource{Group: "egress-gateway.io", Version: "v1alpha1", Resource: "egresstenants"}
	Routes    = schema.GroupVersionResource{Group: "k8s.ovn.org", Version: "v1", Resource: "adminpolicybasedexternalroutes"}
	EgressIPs = schema.GroupVersionResource{Group: "k8s.ovn.org", Version: "v1", Resource: "egressips"}
)

// Cluster is a user's view of the Kubernetes API. Safe for concurrent use.
type Cluster struct {
	Core    kubernetes.Interface
	Dynamic dynamic.Interface
}

// Connect returns a Cluster without the client-side rate limit, which would
// measure itself.
func Connect(cfg *rest.Config) (*Cluster, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS = -1
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make dynamic client: %w", err)
	}
	return &Cluster{Core: core, Dynamic: dyn}, nil
}

// Pool is an EgressPool in the few words that scenarios need.
type Pool struct {
	Name          string
	EgressRanges  []string
	GatewayRanges []string
	// Spec overrides or adds fields of the spec.
	Spec map[string]any
}

// Object returns the pool as it is applied.
func (p Pool) Object() map[string]any {
	spec := map[string]any{"egressRanges": list(p.EgressRanges), "gatewayRanges": list(p.GatewayRanges)}
	maps.Copy(spec, p.Spec)
	return map[string]any{
		"apiVersion": Pools.GroupVersion().String(), "kind": "EgressPool",
		"metadata": map[string]any{"name": p.Name}, "spec": spec,
	}
}

// CreatePool creates an EgressPool.
func (c *Cluster) CreatePool(ctx context.Context, p Pool) error {
	return c.Create(ctx, Pools, p.Object())
}

// Create creates any cluster-scoped object.
func (c *Cluster) Create(ctx context.Context, kind schema.GroupVersionResource, object map[string]any) error {
	if _, err := c.Dynamic.Resource(kind).Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create %s: %w", kind.Resource, err)
	}
	return nil
}

// CreateNamespace creates a namespace with labels and annotations, which may
// be nil.
func (c *Cluster) CreateNamespace(ctx context.Context, name string, labels, annotations map[string]string) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations}}
	if _, err := c.Core.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

// DeleteNamespace deletes a namespace, without waiting for its end.
func (c *Cluster) DeleteNamespace(ctx context.Context, name string) error {
	return c.Core.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
}

// Label does `kubectl label namespace NAME egress-gateway.io/pool=POOL`.
func (c *Cluster) Label(ctx context.Context, namespace, pool string) error {
	return c.patch(ctx, namespace, "labels", LabelPool, pool)
}

// Unlabel does `kubectl label namespace NAME egress-gateway.io/pool-`.
func (c *Cluster) Unlabel(ctx context.Context, namespace string) error {
	return c.patch(ctx, namespace, "labels", LabelPool, nil)
}

// Annotate sets the annotation that asks for exact addresses; empty removes it.
func (c *Cluster) Annotate(ctx context.Context, namespace, addresses string) error {
	if addresses == "" {
		return c.patch(ctx, namespace, "annotations", AnnotationEgressIPs, nil)
	}
	return c.patch(ctx, namespace, "annotations", AnnotationEgressIPs, addresses)
}

func (c *Cluster) patch(ctx context.Context, namespace, field, key string, value any) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{field: map[string]any{key: value}}})
	if err != nil {
		return err
	}
	_, err = c.Core.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, body, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("patch namespace %s: %w", namespace, err)
	}
	return nil
}

// Route returns the next hops of a tenant's APB and its status; found is false
// if there is none.
func (c *Cluster) Route(ctx context.Context, tenant string) (hops []string, status string, found bool, err error) {
	u, err := c.Dynamic.Resource(Routes).Get(ctx, "egress-"+tenant, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, "", false, nil
	}
	if err != nil {
		return nil, "", false, fmt.Errorf("get APB of %s: %w", tenant, err)
	}
	static, _, _ := unstructured.NestedSlice(u.Object, "spec", "nextHops", "static")
	for _, s := range static {
		if m, ok := s.(map[string]any); ok {
			hops = append(hops, fmt.Sprint(m["ip"]))
		}
	}
	status, _, _ = unstructured.NestedString(u.Object, "status", "status")
	return hops, status, true, nil
}

// Until asks every 5 ms (20 ms after the first second) until ok is true, or
// ctx ends. It returns the last error of ok's own, or what was still missing.
func Until(ctx context.Context, what string, ok func(context.Context) (bool, error)) error {
	start := time.Now()
	for {
		done, err := ok(ctx)
		if done && err == nil {
			return nil
		}
		pause := 5 * time.Millisecond
		if time.Since(start) > time.Second {
			pause = 20 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for: %s: %w", time.Since(start).Round(time.Millisecond), what, errors.Join(err, ctx.Err()))
		case <-time.After(pause):
		}
	}
}

func list(in []string) []any {
	out := make([]any, len(in))
	for i, s := range in {
		out[i] = s
	}
	return out
}
