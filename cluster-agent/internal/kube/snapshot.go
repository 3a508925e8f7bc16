// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/cluster-agent/internal/kube/ovn"
)

// lists lists and watches all objects of a cluster-scoped resource.
func lists(c rest.Interface, resource string) cache.ListerWatcher {
	return patient(cache.NewListWatchFromClient(c, resource, metav1.NamespaceAll, fields.Everything()))
}

// namespaceLists lists and watches the metadata of all namespaces. There is no
// selector: with one, a label that is removed while we are away would never be
// seen to go.
func (a *Agent) namespaceLists() cache.ListerWatcher {
	c := a.metadata.Resource(namespacesResource())
	return patient(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Watch(ctx, o)
		},
	})
}

// slim drops what nobody reads and what takes most of the memory.
func slim(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
	}
	return obj, nil
}

func slimNamespace(obj any) (any, error) {
	if ns, ok := obj.(*metav1.PartialObjectMetadata); ok {
		ns.ManagedFields = nil
		text, has := ns.Annotations[v1alpha1.AnnotationEgressIPs]
		ns.Annotations = nil
		if has {
			ns.Annotations = map[string]string{v1alpha1.AnnotationEgressIPs: text}
		}
	}
	return obj, nil
}

func slimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	annotations := map[string]string{}
	for k, v := range n.Annotations {
		if strings.HasPrefix(k, ovn.Group+"/") {
			annotations[k] = v
		}
	}
	small := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Annotations: annotations,
	}}
	small.Spec.PodCIDR, small.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
	for _, addr := range n.Status.Addresses {
		if addr.Type == corev1.NodeInternalIP {
			small.Status.Addresses = append(small.Status.Addresses, addr)
		}
	}
	return small, nil
}

func always(any, any) bool { return true }

func namespaceChanged(old, now any) bool {
	a, b := old.(*metav1.PartialObjectMetadata), now.(*metav1.PartialObjectMetadata)
	return a.UID != b.UID || !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Annotations, b.Annotations) ||
		(a.DeletionTimestamp == nil) != (b.DeletionTimestamp == nil)
}

func nodeChanged(old, now any) bool {
	a, b := old.(*corev1.Node), now.(*corev1.Node)
	return a.UID != b.UID || !maps.Equal(a.Annotations, b.Annotations) ||
		!slices.Equal(a.Spec.PodCIDRs, b.Spec.PodCIDRs) || !slices.Equal(a.Status.Addresses, b.Status.Addresses)
}

// cached returns the content of a cache.
func cached[T any](i cache.SharedIndexInformer) []T {
	list := i.GetStore().List()
	out := make([]T, 0, len(list))
	for _, obj := range list {
		if o, ok := obj.(T); ok {
			out = append(out, o)
		}
	}
	return out
}

// Snapshot returns what the caches hold, with our own newer writes. Its objects
// belong to the caches and must not be changed.
func (a *Agent) Snapshot() derive.Input {
	in := derive.Input{
		Pools:    a.newPools.merge(cached[*v1alpha1.EgressPool](a.pools)),
		Tenants:  a.newTenants.merge(cached[*v1alpha1.EgressTenant](a.tenants)),
		RouteAPI: a.routes.HasSynced(),
	}
	for _, ns := range cached[*metav1.PartialObjectMetadata](a.namespaces) {
		in.Namespaces = append(in.Namespaces, derive.Namespace{
			Name: ns.Name, UID: string(ns.UID), Labels: ns.Labels, Annotations: ns.Annotations, Deleting: ns.DeletionTimestamp != nil,
		})
	}
	for _, n := range cached[*corev1.Node](a.nodes) {
		in.Nodes = append(in.Nodes, nodeOf(n))
	}
	for _, r := range a.newRoutes.merge(cached[*ovn.Route](a.routes)) {
		in.Routes = append(in.Routes, routeOf(r))
	}
	for _, e := range cached[*ovn.EgressIP](a.egressIPs) {
		in.EgressIPs = append(in.EgressIPs, derive.EgressIP{Name: e.Name, Selector: &e.Spec.NamespaceSelector})
	}
	return in
}

func nodeOf(n *corev1.Node) derive.Node {
	out := derive.Node{Name: n.Name, UID: string(n.UID), Annotations: n.Annotations, PodCIDRs: n.Spec.PodCIDRs}
	if len(out.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
		out.PodCIDRs = []string{n.Spec.PodCIDR}
	}
	for _, addr := range n.Status.Addresses {
		out.InternalIPs = append(out.InternalIPs, addr.Address)
	}
	return out
}

// routeOf converts a route. A hop that is no address becomes the zero address,
// which equals none that we want.
func routeOf(r *ovn.Route) derive.Route {
	out := derive.Route{
		Name: r.Name, Version: r.ResourceVersion, Ours: r.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy,
		Selector: &r.Spec.From.NamespaceSelector, Dynamic: len(r.Spec.NextHops.Dynamic) > 0,
		Status: r.Status.Status, Messages: r.Status.Messages,
	}
	for _, h := range r.Spec.NextHops.Static {
		a, _ := netip.ParseAddr(h.IP)
		out.Hops = append(out.Hops, a)
		out.BFD = out.BFD || h.BFDEnabled
	}
	for _, o := range r.OwnerReferences {
		out.Owners = append(out.Owners, string(o.UID))
	}
	return out
}
