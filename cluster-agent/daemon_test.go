// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/kube/kubetest"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/tenant"
)

var kubeServer *kubetest.Server // set once by TestMain, before any test

func TestMain(m *testing.M) {
	os.Exit(kubetest.Main(m, func(s *kubetest.Server) { kubeServer = s }))
}

const patience = 30 * time.Second

// natsAt starts a NATS server with JetStream in this process, set up.
func natsAt(t *testing.T, port int, dir string) *natsserver.Server {
	t.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("nats-server did not start")
	}
	conn, err := bus.Connect(t.Context(), bus.Config{URL: []string{s.ClientURL()}}, "setup", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := bus.Setup(t.Context(), conn, 1); err != nil {
		t.Fatal(err)
	}
	return s
}

// story is a cluster, NATS, the program under test and a gateway's side of the
// bus.
type story struct {
	t       *testing.T
	config  Config
	core    *typedcore.CoreV1Client
	dynamic dynamic.Interface
	conn    *bus.Conn
	views   *bus.Follower
	status  *bus.StatusWriter
}

func newStory(t *testing.T, natsURL string) *story {
	t.Helper()
	s := &story{t: t}
	path, err := kubeServer.Kubeconfig(kubetest.Agent)
	s.must(err)
	s.config = Config{
		Name: "lab", PodNetworks: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")}, Kubeconfig: path, Identity: "one",
		LeaseNamespace: "egress-gateway", LeaseName: "egress-cluster-agent", LeaseDuration: 3 * time.Second, LeaseRenewDeadline: 2 * time.Second, LeaseRetryPeriod: 200 * time.Millisecond,
		StateDir: t.TempDir(), Listen: "127.0.0.1:0", NATS: bus.Config{URL: []string{natsURL}},
	}
	s.core, err = typedcore.NewForConfig(kubeServer.Config(kubetest.Admin))
	s.must(err)
	s.dynamic, err = dynamic.NewForConfig(kubeServer.Config(kubetest.Admin))
	s.must(err)
	s.conn, err = bus.Connect(t.Context(), s.config.NATS, "gw1", slog.New(slog.DiscardHandler))
	s.must(err)
	s.views = bus.NewFollower(s.conn, bus.FollowerOptions{Clock: time.Now, Log: slog.New(slog.DiscardHandler)})
	s.status = bus.NewStatusWriter(s.conn, "gw1", bus.StatusOptions{Clock: time.Now, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.views.Run(ctx) })
	wg.Go(func() { _ = s.status.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); _ = s.conn.Close() })
	return s
}

func (s *story) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) until(what string, ok func() error) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// start runs the program and returns how to end it as SIGTERM does, and its
// health endpoint.
func (s *story) start() (stop func(), url string) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if os.Getenv("EGRESS_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	a, err := newAgent(ctx, s.config, log)
	s.must(err)
	done := make(chan error, 1)
	go func() { done <- a.run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("the program ended with %v", err)
		}
	})
	s.t.Cleanup(stop)
	return stop, "http://" + a.server.Addr()
}

// told returns the gateway's view of a tenant.
func (s *story) told(name string) (tenant.Tenant, bool) {
	for _, t := range s.views.Views()["lab"].Tenants {
		if t.Name == name {
			return t, true
		}
	}
	return tenant.Tenant{}, false
}

func (s *story) isTold(name string) tenant.Tenant {
	s.t.Helper()
	var got tenant.Tenant
	s.until("the gateway to be told of "+name, func() error {
		t, ok := s.told(name)
		if !ok || t.Released {
			return fmt.Errorf("its view: %+v", s.views.Views()["lab"])
		}
		got = t
		return nil
	})
	return got
}

func (s *story) namespace(name string) {
	s.t.Helper()
	_, err := s.core.Namespaces().Create(s.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.LabelPool: "public"}}}, metav1.CreateOptions{})
	s.must(err)
}

func (s *story) tenant(name string) (t v1alpha1.EgressTenant, err error) {
	u, err := s.dynamic.Resource(v1alpha1.GroupVersion().WithResource("egresstenants")).Get(s.t.Context(), name, metav1.GetOptions{})
	if err == nil {
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &t)
	}
	return t, err
}

// The program from end to end, with real NATS and a real API server, and as the
// service account of the manifests: from the label to the gateway, from the
// gateway's acknowledgement to the condition; NATS goes and comes back; the
// program is restarted; the audit has it all.
func TestFromLabelToGatewayAndBack(t *testing.T) {
	dir := t.TempDir()
	nats := natsAt(t, -1, dir)
	defer func() { nats.Shutdown(); nats.WaitForShutdown() }()
	port := 0
	_, err := fmt.Sscanf(nats.ClientURL()[strings.LastIndex(nats.ClientURL(), ":")+1:], "%d", &port)
	if err != nil {
		t.Fatal(err)
	}
	s := newStory(t, nats.ClientURL())
	pool := map[string]any{"apiVersion": "egress-gateway.io/v1alpha1", "kind": "EgressPool", "metadata": map[string]any{"name": "public"},
		"spec": map[string]any{"egressRanges": []any{"192.168.55.113-192.168.55.120"}, "gatewayRanges": []any{"192.168.99.13-192.168.99.20"}}}
	_, err = s.dynamic.Resource(v1alpha1.GroupVersion().WithResource("egresspools")).Create(t.Context(), &unstructured.Unstructured{Object: pool}, metav1.CreateOptions{})
	s.must(err)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1", Annotations: map[string]string{"k8s.ovn.org/node-subnets": `{"default":["10.128.0.0/23"]}`, "k8s.ovn.org/l3-gateway-config": `{"default":{"ip-addresses":["192.168.99.21/24"]}}`}}}
	_, err = s.core.Nodes().Create(t.Context(), node, metav1.CreateOptions{})
	s.must(err)
	stop, url := s.start()

	s.namespace("ns-blue")
	blue := s.isTold("ns-blue")
	view := s.views.Views()["lab"]
	if blue.EgressIPs[0].String() != "192.168.55.113" || view.Network == nil || len(view.Nodes) != 1 || view.Nodes[0].Addresses[0].String() != "192.168.99.21" {
		t.Errorf("the gateway sees %+v", view)
	}

	t.Run("acknowledged", func(t *testing.T) {
		summary := tenant.Summary{Schema: tenant.Schema, Gateway: "gw1", Group: "default", Time: time.Now()}
		ack := tenant.Status{Schema: tenant.Schema, Gateway: "gw1", Cluster: "lab", Name: "ns-blue", UID: blue.UID, Generation: blue.Generation, Programmed: true, Time: time.Now()}
		s.until("the bucket to take the acknowledgement", func() error {
			_, err := s.status.Sync(t.Context(), map[string][]byte{tenant.SummaryKey("gw1"): tenant.Encode(summary), tenant.StatusKey("gw1", "lab", "ns-blue"): tenant.Encode(ack)})
			return err
		})
		s.until("the condition", func() error {
			got, err := s.tenant("ns-blue")
			if err != nil || !meta.IsStatusConditionTrue(got.Status.Conditions, v1alpha1.ConditionProgrammed) || got.Status.Gateway != "gw1" {
				return fmt.Errorf("%+v, %w", got.Status, err)
			}
			return nil
		})
	})
	t.Run("health and figures", func(t *testing.T) {
		for path, mentions := range map[string]string{"/livez": "ok", "/readyz": "ok", "/metrics": `egress_tenants{state="allocated"} 1`} {
			resp, err := http.Get(url + path)
			s.must(err)
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(b), mentions) {
				t.Errorf("%s: %d, %v", path, resp.StatusCode, err)
			}
		}
	})
	t.Run("NATS away and back", func(t *testing.T) {
		nats.Shutdown()
		nats.WaitForShutdown()
		s.namespace("ns-away")
		s.until("the allocation", func() error { _, err := s.tenant("ns-away"); return err })
		nats = natsAt(t, port, dir)
		s.isTold("ns-away")
	})
	t.Run("a node loses its annotation while nobody leads", func(t *testing.T) {
		stop()
		_, err := s.core.Nodes().Patch(t.Context(), "node1", "application/merge-patch+json", []byte(`{"metadata":{"annotations":{"k8s.ovn.org/node-subnets":null}}}`), metav1.PatchOptions{})
		s.must(err)
		s.start()
		s.namespace("ns-late")
		s.isTold("ns-late")
		if nodes := s.views.Views()["lab"].Nodes; len(nodes) != 1 || nodes[0].Subnets[0].String() != "10.128.0.0/23" {
			t.Errorf("the record of the node was not kept: %+v", nodes)
		}
		if again := s.isTold("ns-blue"); again.UID != blue.UID || again.EgressIPs[0] != blue.EgressIPs[0] {
			t.Errorf("a restart changed the tenant: %+v", again)
		}
	})
	t.Run("the lease is lost and won again", func(t *testing.T) {
		leases := s.dynamic.Resource(schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}).Namespace("egress-gateway")
		_, err := leases.Patch(t.Context(), "egress-cluster-agent", "application/merge-patch+json", []byte(`{"spec":{"holderIdentity":"thief","leaseDurationSeconds":4}}`), metav1.PatchOptions{})
		s.must(err)
		s.until("the program to notice and to lead again", func() error {
			l, err := leases.Get(t.Context(), "egress-cluster-agent", metav1.GetOptions{})
			s.must(err)
			if holder, _, _ := unstructured.NestedString(l.Object, "spec", "holderIdentity"); holder != "one" {
				return fmt.Errorf("%q leads", holder)
			}
			return nil
		})
		s.namespace("ns-again")
		s.isTold("ns-again")
	})
	t.Run("the API server away for longer than a lease lasts", func(t *testing.T) {
		kubeServer.KillAPI()
		time.Sleep(s.config.LeaseDuration + time.Second) // the outage itself
		s.must(kubeServer.StartAPI())
		s.namespace("ns-after")
		s.isTold("ns-after")
		if again := s.isTold("ns-blue"); again.UID != blue.UID || again.EgressIPs[0] != blue.EgressIPs[0] {
			t.Errorf("the outage changed the tenant: %+v", again)
		}
	})
	t.Run("released", func(t *testing.T) {
		_, err := s.core.Namespaces().Patch(t.Context(), "ns-blue", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"egress-gateway.io/pool":null}}}`), metav1.PatchOptions{})
		s.must(err)
		s.until("the tombstone", func() error {
			if got, ok := s.told("ns-blue"); ok && !got.Released {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
	})
	t.Run("the audit has it all", func(t *testing.T) {
		s.until("the events", func() error {
			kinds := map[string]int{}
			err := bus.ReadAudit(t.Context(), s.conn, bus.AuditFilter{Cluster: "lab"}, func(e bus.AuditEvent) error { kinds[e.Kind]++; return nil })
			if err != nil || kinds["alloc"] != 5 || kinds["release"] != 1 || kinds["apb"] < 4 || kinds["connect"] < 2 || kinds["loss"] < 1 {
				return errors.Join(err, fmt.Errorf("%v", kinds))
			}
			return nil
		})
	})
}
