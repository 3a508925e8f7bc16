// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/cluster-agent/internal/kube/ovn"
)

// Pool reads a pool from the API server.
func (a *Agent) Pool(ctx context.Context, name string) (*v1alpha1.EgressPool, error) {
	p := &v1alpha1.EgressPool{}
	return p, send(ctx, a.own.Get().Resource(pools).Name(name), p)
}

// Tenants reads all tenants from the API server. Without a resource version
// given, the answer is as new as the request.
func (a *Agent) Tenants(ctx context.Context) ([]*v1alpha1.EgressTenant, uint64, error) {
	var l v1alpha1.EgressTenantList
	if err := send(ctx, a.own.Get().Resource(tenants), &l); err != nil {
		return nil, 0, err
	}
	version, err := strconv.ParseUint(l.ResourceVersion, 10, 64)
	if err != nil {
		return nil, 0, fmt.Errorf("resource version of the list: %w", err)
	}
	out := make([]*v1alpha1.EgressTenant, len(l.Items))
	for i := range l.Items {
		out[i] = &l.Items[i]
	}
	return out, version, nil
}

// UpdatePoolStatus writes the status of p, if p is of the latest version.
func (a *Agent) UpdatePoolStatus(ctx context.Context, p *v1alpha1.EgressPool) (*v1alpha1.EgressPool, error) {
	out := &v1alpha1.EgressPool{}
	err := send(ctx, a.own.Put().Resource(pools).Name(p.Name).SubResource("status").Body(p), out)
	if err == nil {
		a.newPools.put(out)
	}
	return out, err
}

// CreateTenant creates t.
func (a *Agent) CreateTenant(ctx context.Context, t *v1alpha1.EgressTenant) (*v1alpha1.EgressTenant, error) {
	out := &v1alpha1.EgressTenant{}
	err := send(ctx, a.own.Post().Resource(tenants).Body(t), out)
	if err == nil {
		a.newTenants.put(out)
	}
	return out, err
}

// UpdateTenant writes the spec of t, if t is of the latest version.
func (a *Agent) UpdateTenant(ctx context.Context, t *v1alpha1.EgressTenant) (*v1alpha1.EgressTenant, error) {
	out := &v1alpha1.EgressTenant{}
	err := send(ctx, a.own.Put().Resource(tenants).Name(t.Name).Body(t), out)
	if err == nil {
		a.newTenants.put(out)
	}
	return out, err
}

// SetTenantStatus writes the status of t, if t is of the latest version.
func (a *Agent) SetTenantStatus(ctx context.Context, t *v1alpha1.EgressTenant, s v1alpha1.EgressTenantStatus) error {
	next := *t // shallow: only the status is replaced
	next.Status = s
	out := &v1alpha1.EgressTenant{}
	err := send(ctx, a.own.Put().Resource(tenants).Name(t.Name).SubResource("status").Body(&next), out)
	if err == nil {
		a.newTenants.put(out)
	}
	return err
}

// DeleteTenant deletes t in the very version given.
func (a *Agent) DeleteTenant(ctx context.Context, t *v1alpha1.EgressTenant) error {
	only := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &t.UID, ResourceVersion: &t.ResourceVersion}}
	err := send(ctx, a.own.Delete().Resource(tenants).Name(t.Name).Body(only), nil)
	if err == nil {
		a.newTenants.drop(t.Name, t.UID)
	}
	return err
}

// ApplyRoute applies a route on the server's side. Content that is as it should
// be keeps its version.
func (a *Agent) ApplyRoute(ctx context.Context, r derive.WantedRoute) (string, error) {
	body, err := json.Marshal(routeBody(r))
	if err != nil {
		return "", err
	}
	out := &ovn.Route{}
	request := a.ovn.Patch(types.ApplyPatchType).Resource(ovn.Routes).Name(r.Name).
		Param("fieldManager", FieldManager).Param("force", "true").Body(body)
	if err := send(ctx, request, out); err != nil {
		return "", err
	}
	a.newRoutes.put(out)
	return out.ResourceVersion, nil
}

// routeBody is what we own of a route. bfdEnabled is said although false is the
// default, so that nobody else can own it.
func routeBody(r derive.WantedRoute) map[string]any {
	hops := make([]map[string]any, len(r.Hops))
	for i, h := range r.Hops {
		hops[i] = map[string]any{"ip": h.String(), "bfdEnabled": false}
	}
	owners := make([]metav1.OwnerReference, len(r.Owners))
	no := false
	for i, o := range r.Owners {
		owners[i] = metav1.OwnerReference{APIVersion: "v1", Kind: "Namespace", Name: o.Name, UID: types.UID(o.UID), BlockOwnerDeletion: &no}
	}
	return map[string]any{
		"apiVersion": ovn.GroupVersion().String(), "kind": ovn.RouteKind,
		"metadata": map[string]any{
			"name": r.Name, "ownerReferences": owners,
			"labels": map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		},
		"spec": map[string]any{
			"from":     map[string]any{"namespaceSelector": r.Selector},
			"nextHops": map[string]any{"static": hops},
		},
	}
}

// DeleteRoute deletes a route of ours; one that is gone already is fine.
func (a *Agent) DeleteRoute(ctx context.Context, name string) error {
	out := &ovn.Route{}
	err := send(ctx, a.ovn.Get().Resource(ovn.Routes).Name(name), out)
	if apierrors.IsNotFound(err) || err == nil && out.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy {
		return nil
	}
	if err != nil {
		return err
	}
	only := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &out.UID}}
	err = send(ctx, a.ovn.Delete().Resource(ovn.Routes).Name(name).Body(only), nil)
	if err == nil {
		a.newRoutes.drop(name, out.UID)
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// maxNote is what the API server accepts as the text of an event.
const maxNote = 1000

// Event records an event. It returns at once; the event may be lost.
func (a *Agent) Event(e derive.Event) {
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	note := e.Message
	for len(note) > maxNote {
		_, size := utf8.DecodeLastRuneInString(note)
		note = note[:min(len(note)-size, maxNote)]
	}
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: e.Kind, Name: e.Name, UID: types.UID(e.UID)}
	a.recorder.Eventf(about, nil, kind, e.Reason, "Egress", "%s", note)
}

// send sends a request with a time limit and decodes the answer into out, if
// that is not nil.
func send(ctx context.Context, r *rest.Request, out runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	result := r.Do(ctx)
	if out == nil {
		return result.Error()
	}
	return result.Into(out)
}
