// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/kube/ovn"
)

// Options are what an Agent works with. Log and Clock are required.
type Options struct {
	Log   *slog.Logger
	Clock func() time.Time
	// Metrics may be nil.
	Metrics *Metrics
	// Changed is called whenever a cache has changed in a way that may matter.
	// It must not block.
	Changed func()
}

// Agent holds the caches and writes to the API server. Make it with New; its
// methods are safe for concurrent use once Run is under way.
type Agent struct {
	*clients
	opts Options

	namespaces, nodes, pools, tenants, routes, egressIPs cache.SharedIndexInformer

	newPools   *overlay[*v1alpha1.EgressPool]
	newTenants *overlay[*v1alpha1.EgressTenant]
	newRoutes  *overlay[*ovn.Route]

	recorder    events.EventRecorder
	broadcaster events.EventBroadcaster

	name    *cache.InformerName // for the metrics, or nil
	started chan struct{}       // closed once all caches have been filled
	waiting atomic.Value        // string: what Run is waiting for
}

const (
	// ownRetry is how often missing CRDs of our own are looked for, ovnRetry
	// those of OVN-Kubernetes.
	ownRetry = 2 * time.Second
	ovnRetry = 10 * time.Second
)

// New returns an agent that does not watch yet. It does not contact the API
// server.
func New(cfg *rest.Config, opts Options) (*Agent, error) {
	c, err := newClients(cfg)
	if err != nil {
		return nil, err
	}
	if opts.Changed == nil {
		opts.Changed = func() {}
	}
	a := &Agent{
		clients: c, opts: opts, started: make(chan struct{}),
		newPools:   newOverlay[*v1alpha1.EgressPool](opts.Clock),
		newTenants: newOverlay[*v1alpha1.EgressTenant](opts.Clock),
		newRoutes:  newOverlay[*ovn.Route](opts.Clock),
	}
	a.waiting.Store("has not begun")
	a.broadcaster = events.NewBroadcaster(&events.EventSinkImpl{Interface: c.events})
	a.recorder = a.broadcaster.NewRecorder(c.scheme, FieldManager)
	return a, a.makeInformers()
}

// Run keeps the caches up to date until ctx ends. It waits for CRDs that are not
// there yet, and says so.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("event recorder: %w", err)
	}
	defer a.broadcaster.Shutdown()
	defer a.name.Release()
	var wg sync.WaitGroup
	defer wg.Wait()
	start := func(i cache.SharedIndexInformer) {
		wg.Go(func() { i.RunWithContext(ctx) })
		wg.Go(func() { // an empty list is news as well, and brings no event
			if cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
				a.opts.Changed()
			}
		})
	}

	if !a.awaitOwn(ctx) {
		return nil
	}
	own := []cache.SharedIndexInformer{a.namespaces, a.nodes, a.pools, a.tenants}
	for _, i := range own {
		start(i)
	}
	// What is there of OVN must be known before the first pass: it may route a
	// namespace already.
	missing := a.startOVN(ctx, map[string]cache.SharedIndexInformer{ovn.Routes: a.routes, ovn.EgressIPs: a.egressIPs}, start)
	a.waiting.Store("waits for the first lists of the API server")
	if !cache.WaitForCacheSync(ctx.Done(), synced(own)...) {
		return nil
	}
	for name, i := range map[string]cache.SharedIndexInformer{ovn.Routes: a.routes, ovn.EgressIPs: a.egressIPs} {
		if missing[name] == nil && !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			return nil
		}
	}
	a.opts.Log.Info("caches are filled", "step", "watch")
	close(a.started)
	a.opts.Changed()
	if missing[ovn.Routes] != nil {
		a.opts.Log.Error("the API server does not serve AdminPolicyBasedExternalRoute: OVN-Kubernetes with --enable-multi-external-gateway is needed; no tenant can be routed", "step", "watch")
	}
	for len(missing) > 0 && wait(ctx, ovnRetry) {
		missing = a.startOVN(ctx, missing, start)
	}
	<-ctx.Done()
	return nil
}

func synced(list []cache.SharedIndexInformer) []cache.InformerSynced {
	out := make([]cache.InformerSynced, len(list))
	for i, informer := range list {
		out[i] = informer.HasSynced
	}
	return out
}

// awaitOwn waits until our own CRDs are served. It returns false if ctx ended.
func (a *Agent) awaitOwn(ctx context.Context) bool {
	said := ""
	for {
		err := a.checkOwn(ctx)
		if err == nil {
			return true
		}
		a.waiting.Store(err.Error())
		if err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			a.opts.Log.Warn("waiting for the API server", "err", err, "step", "watch")
		}
		if !wait(ctx, ownRetry) {
			return false
		}
	}
}

func (a *Agent) checkOwn(ctx context.Context) error {
	for _, resource := range []string{pools, tenants} {
		ok, err := serves(ctx, a.own, v1alpha1.GroupVersion(), resource)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("the CRD %s.%s is missing: apply deploy/crds", resource, v1alpha1.GroupVersion().Group)
		}
	}
	return nil
}

// startOVN starts the informers whose resources are served, and returns the
// others.
func (a *Agent) startOVN(ctx context.Context, list map[string]cache.SharedIndexInformer, start func(cache.SharedIndexInformer)) map[string]cache.SharedIndexInformer {
	missing := map[string]cache.SharedIndexInformer{}
	for name, informer := range list {
		ok, err := serves(ctx, a.ovn, ovn.GroupVersion(), name)
		if err != nil && ctx.Err() == nil {
			a.opts.Log.Warn("can not ask what OVN-Kubernetes offers; trying again", "err", err, "step", "watch")
		}
		if !ok {
			missing[name] = informer
			continue
		}
		a.opts.Log.Info("watching", "resource", name, "step", "watch")
		start(informer)
	}
	return missing
}

// Started is closed once all caches are filled.
func (a *Agent) Started() <-chan struct{} { return a.started }

// Ready returns nil once all caches are filled, else what is missing.
func (a *Agent) Ready() error {
	select {
	case <-a.started:
		return nil
	default:
		return errors.New(a.waiting.Load().(string))
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// The resources that are watched.
const (
	pools   = "egresspools"
	tenants = "egresstenants"
)

// makeInformers makes all informers; none runs yet.
func (a *Agent) makeInformers() error {
	if err := a.useMetrics(); err != nil {
		return err
	}
	informer := func(lw cache.ListerWatcher, object runtime.Object, gv schema.GroupVersion, resource string) cache.SharedIndexInformer {
		return cache.NewSharedIndexInformerWithOptions(lw, object, a.informerOptions(gv.WithResource(resource)))
	}
	core, own, theirs := corev1.SchemeGroupVersion, v1alpha1.GroupVersion(), ovn.GroupVersion()
	a.namespaces = informer(a.namespaceLists(), &metav1.PartialObjectMetadata{}, core, "namespaces")
	a.nodes = informer(lists(a.core.RESTClient(), "nodes"), &corev1.Node{}, core, "nodes")
	a.pools = informer(lists(a.own, pools), &v1alpha1.EgressPool{}, own, pools)
	a.tenants = informer(lists(a.own, tenants), &v1alpha1.EgressTenant{}, own, tenants)
	a.routes = informer(lists(a.ovn, ovn.Routes), &ovn.Route{}, theirs, ovn.Routes)
	a.egressIPs = informer(lists(a.ovn, ovn.EgressIPs), &ovn.EgressIP{}, theirs, ovn.EgressIPs)
	var errs []error
	for _, i := range []struct {
		informer  cache.SharedIndexInformer
		transform cache.TransformFunc
		matters   func(old, now any) bool
		gone      func(obj metav1.Object)
	}{
		{a.namespaces, slimNamespace, namespaceChanged, nil},
		{a.nodes, slimNode, nodeChanged, nil},
		{a.pools, slim, always, func(o metav1.Object) { a.newPools.gone(o.GetName(), o.GetUID()) }},
		{a.tenants, slim, always, func(o metav1.Object) { a.newTenants.gone(o.GetName(), o.GetUID()) }},
		{a.routes, slim, always, func(o metav1.Object) { a.newRoutes.gone(o.GetName(), o.GetUID()) }},
		{a.egressIPs, slim, always, nil},
	} {
		errs = append(errs, i.informer.SetTransform(i.transform))
		_, err := i.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { a.opts.Changed() },
			UpdateFunc: func(old, now any) {
				if i.matters(old, now) {
					a.opts.Changed()
				}
			},
			DeleteFunc: func(obj any) {
				if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = last.Obj
				}
				if o, ok := obj.(metav1.Object); ok && i.gone != nil {
					i.gone(o)
				}
				a.opts.Changed()
			},
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func namespacesResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
}
