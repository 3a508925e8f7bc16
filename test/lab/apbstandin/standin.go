// SPDX-License-Identifier: Apache-2.0

// Package apbstandin stands in for OVN-Kubernetes in the lab. It is NOT OVN,
// and proves nothing about OVN: no Open vSwitch, no overlay, no BFD, no dynamic
// hops, no EgressIP.
//
// What it does: it reads AdminPolicyBasedExternalRoutes, Namespaces, Nodes and
// Pods from the API, gives each selected pod a route of its own on its node
// (`ip rule from POD`, default via the next hops), and writes the policy's
// status the way OVN-Kubernetes does: one message per node under the node's
// name as field manager, and the verdict as cluster-manager. As there,
//   - all traffic of such a pod but that to the cluster network goes to the
//     next hop, that to hosts of the node network too;
//   - a hop is for the pods' addresses of its family: the other family keeps
//     the node's default route;
//   - a change of hops removes a pod's route before the new one is there, and
//     a pod without a route takes the node's default route: nothing fails closed;
//   - a policy that selects a namespace of another one fails as a whole, and
//     keeps the state that it had.
//
// Where it differs: a failed policy is tried again as soon as the other one is
// gone, which OVN-Kubernetes leaves to the next event of the policy itself.
package apbstandin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

var policyResource = schema.GroupVersionResource{Group: "k8s.ovn.org", Version: "v1", Resource: "adminpolicybasedexternalroutes"}

// retryAfter is how long a failed pass waits for the next.
const retryAfter = 200 * time.Millisecond

// Config tells where the nodes are.
type Config struct {
	// Namespace returns the name of a node's network namespace. A Node object
	// without one is a node on which no OVN runs: it reports nothing.
	Namespace       func(node string) string
	NIC             string   // the node's link to the next hops
	ClusterNetworks []string // traffic to them keeps to the node's own routes
}

// Standin is made by New and runs once.
type Standin struct {
	cfg      Config
	clusters []netip.Prefix
	log      *slog.Logger
	client   dynamic.Interface

	core     informers.SharedInformerFactory
	dynamics dynamicinformer.DynamicSharedInformerFactory

	policies   cache.GenericLister
	namespaces corelisters.NamespaceLister
	nodes      corelisters.NodeLister
	pods       corelisters.PodLister

	trigger chan struct{}
	synced  chan struct{}

	// Owned by the loop.
	parsed  map[string]parsedPolicy
	applied map[string]grant
	kernels map[string]*nodeKernel
	reports *reporter
}

// New makes a stand-in; nothing runs yet.
func New(cfg Config, rc *rest.Config, log *slog.Logger) (*Standin, error) {
	var clusters []netip.Prefix
	for _, n := range cfg.ClusterNetworks {
		cluster, err := netip.ParsePrefix(n)
		if err != nil {
			return nil, fmt.Errorf("stand-in: cluster network: %w", err)
		}
		clusters = append(clusters, cluster)
	}
	kube, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("stand-in: %w", err)
	}
	dyn, err := dynamic.NewForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("stand-in: %w", err)
	}
	s := &Standin{
		cfg: cfg, clusters: clusters, log: log, client: dyn,
		core: informers.NewSharedInformerFactory(kube, 0), dynamics: dynamicinformer.NewDynamicSharedInformerFactory(dyn, 0),
		trigger: make(chan struct{}, 1), synced: make(chan struct{}),
		parsed: map[string]parsedPolicy{}, applied: map[string]grant{}, kernels: map[string]*nodeKernel{},
	}
	s.policies = s.dynamics.ForResource(policyResource).Lister()
	s.namespaces = s.core.Core().V1().Namespaces().Lister()
	s.nodes = s.core.Core().V1().Nodes().Lister()
	s.pods = s.core.Core().V1().Pods().Lister()
	s.reports = newReporter(dyn.Resource(policyResource), s.policies, log)
	return s, nil
}

// Synced is closed after the first pass over all objects.
func (s *Standin) Synced() <-chan struct{} { return s.synced }

// Run works until ctx ends. It leaves the routes on the nodes.
func (s *Standin) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		s.core.Shutdown()
		s.dynamics.Shutdown()
		wg.Wait()
		for _, k := range s.kernels {
			k.close()
		}
	}()
	for _, informer := range []cache.SharedIndexInformer{
		s.dynamics.ForResource(policyResource).Informer(), s.core.Core().V1().Namespaces().Informer(),
		s.core.Core().V1().Nodes().Informer(), s.core.Core().V1().Pods().Informer(),
	} {
		if _, err := informer.AddEventHandler(s.pokes()); err != nil {
			return fmt.Errorf("stand-in: watch: %w", err)
		}
	}
	s.core.Start(ctx.Done())
	s.dynamics.Start(ctx.Done())
	s.core.WaitForCacheSync(ctx.Done())
	s.dynamics.WaitForCacheSync(ctx.Done())
	for range reportWorkers {
		wg.Go(func() { s.reports.work(ctx) })
	}
	s.poke()
	return s.loop(ctx)
}

func (s *Standin) loop(ctx context.Context) error {
	retry := time.NewTimer(retryAfter)
	retry.Stop()
	first := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.trigger:
		case <-retry.C:
		}
		if err := s.pass(); err != nil {
			s.log.Error("pass failed", "err", err)
			retry.Reset(retryAfter)
			continue
		}
		if first {
			close(s.synced)
			first = false
		}
	}
}

func (s *Standin) pokes() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.poke() },
		UpdateFunc: func(_, _ any) { s.poke() },
		DeleteFunc: func(any) { s.poke() },
	}
}

func (s *Standin) poke() {
	select {
	case s.trigger <- struct{}{}:
	default: // a pass is due already, and will see this change too
	}
}

// pass brings nodes and reports to what the API says now.
func (s *Standin) pass() error {
	if err := s.openKernels(); err != nil {
		return err
	}
	policies, err := s.readPolicies()
	if err != nil {
		return err
	}
	namespaces, err := s.namespaces.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	problems := grantAll(s.applied, policies, namespaces)
	want, err := s.wantedRoutes()
	if err != nil {
		return err
	}
	failed := map[string]error{}
	for name, k := range s.kernels {
		if err := k.set(want[name]); err != nil {
			failed[name] = err
		}
	}
	s.reports.want(s.messages(policies, problems, failed))
	for _, err := range failed {
		return err
	}
	return nil
}

// openKernels follows the nodes that are there: it opens new ones, and those
// that were removed and came back under their old name.
func (s *Standin) openKernels() error {
	nodes, err := s.nodes.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	present := map[string]bool{}
	var errs []error
	for _, n := range nodes {
		ns := s.cfg.Namespace(n.Name)
		id, ok := identify(ns)
		if !ok {
			continue
		}
		present[n.Name] = true
		if k := s.kernels[n.Name]; k != nil {
			if k.id == id {
				continue
			}
			k.close()
			delete(s.kernels, n.Name)
		}
		k, err := openKernel(ns, id, s.cfg.NIC, s.clusters)
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", n.Name, err))
			continue
		}
		s.kernels[n.Name] = k
	}
	for name, k := range s.kernels {
		if !present[name] {
			k.close()
			delete(s.kernels, name)
		}
	}
	return errors.Join(errs...)
}
