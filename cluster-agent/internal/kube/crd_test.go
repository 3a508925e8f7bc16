// SPDX-License-Identifier: Apache-2.0

package kube_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"egress-gateway.io/cluster-agent/internal/kube"
	"egress-gateway.io/cluster-agent/internal/kube/kubetest"
)

func kubetestRoutes() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "k8s.ovn.org", Version: "v1", Resource: "adminpolicybasedexternalroutes"}
}

func kubetestLeases() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
}

// On a cluster without any of the CRDs the agent waits and says for what. Once
// ours are there it starts, and knows that there is no OVN to route anything.
func TestMissingCRDs(t *testing.T) {
	t.Parallel()
	bare, err := kubetest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bare.Stop)
	a, err := kube.New(bare.Config(kubetest.Admin), kube.Options{Log: slog.New(slog.DiscardHandler), Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })

	deadline := time.Now().Add(30 * time.Second)
	for a.Ready() == nil || !strings.Contains(a.Ready().Error(), "apply deploy/crds") {
		if time.Now().After(deadline) {
			t.Fatalf("it says %v, and nothing of deploy/crds", a.Ready())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := bare.Apply(t.Context(), kubetest.Root()+"/deploy/crds"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-a.Started():
	case <-time.After(30 * time.Second):
		t.Fatal("it does not start: ", a.Ready())
	}
	if a.Snapshot().RouteAPI {
		t.Error("it takes the routes for known")
	}
	if err := bare.Apply(t.Context(), kubetest.Root()+"/test/lab/crds"); err != nil {
		t.Fatal(err)
	}
	deadline = time.Now().Add(30 * time.Second)
	for !a.Snapshot().RouteAPI {
		if time.Now().After(deadline) {
			t.Fatal("OVN has come, and it has not noticed")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
