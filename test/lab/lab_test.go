// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/test/lab/namespace"
)

const testBin = "../../build/bin"

// bring brings up a lab for one test and proves at its end that nothing of it
// is left.
func bring(t *testing.T, name string, change func(*Options)) *Lab {
	t.Helper()
	requireRoot(t)
	opts := Options{Name: name, Dir: t.TempDir(), BinDir: testBin, Log: t.Output()}
	if change != nil {
		change(&opts)
	}
	began := time.Now()
	l, err := Up(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up in %s", time.Since(began))
	t.Cleanup(func() {
		began := time.Now()
		if err := l.Down(); err != nil {
			t.Error(err)
		}
		t.Logf("down in %s", time.Since(began))
		requireNothing(t, name)
	})
	return l
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: the lab makes network namespaces")
	}
	for _, b := range []string{"kube-apiserver", "kube-controller-manager", "nats-server", "lab"} {
		if _, err := os.Stat(filepath.Join(testBin, b)); err != nil {
			t.Fatalf("%v: run `make build lab-bin`", err)
		}
	}
}

func requireNothing(t *testing.T, name string) {
	t.Helper()
	namespaces, err := namespace.List(name + "-")
	if err != nil || len(namespaces) > 0 {
		t.Errorf("namespaces left: %v %v", namespaces, err)
	}
	processes, err := Processes(name)
	if err != nil || len(processes) > 0 {
		t.Errorf("processes left: %v %v", processes, err)
	}
}

func TestNetwork(t *testing.T) {
	l := bring(t, "labnet", nil)
	pods, err := l.Populate(t.Context(), []string{"ns-blue", "ns-red"}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(pods) != 8 {
		t.Fatalf("got %d pods, want 8", len(pods))
	}
	t.Run("nodes and gateway see each other", func(t *testing.T) {
		requireReach(t, l, "node1", GatewayInternal)
		requireReach(t, l, "node2", LANHost)
		requireReach(t, l, PartGateway, nodeAddress(1).String())
		requireReach(t, l, PartGateway, Control)
	})
	t.Run("pods see nodes and each other", func(t *testing.T) {
		requireReach(t, l, pods[0].Part, nodeAddress(0).String())
		requireReach(t, l, pods[0].Part, pods[2].Address.String())
	})
	t.Run("the server tells the gateway's address", func(t *testing.T) {
		out, err := l.HTTPGet(t.Context(), PartGateway, ServerURL)
		if err != nil || out != GatewayExternal {
			t.Fatalf("got %q, %v", out, err)
		}
	})
	t.Run("a pod without a policy reaches nothing outside", func(t *testing.T) {
		if source, err := pods[0].HTTPGet(t.Context(), ServerURL); err == nil {
			t.Fatalf("the server saw %s", source)
		}
	})
	t.Run("the gateway is as a cloud hands it out", func(t *testing.T) {
		for path, want := range map[string]string{
			"net/ipv4/ip_forward": "0", "net/ipv4/conf/all/arp_ignore": "0", "net/ipv4/conf/enp1s0/rp_filter": "1",
		} {
			out, err := l.RunInGateway("cat", "/proc/sys/"+path)
			if err != nil || strings.TrimSpace(out) != want {
				t.Errorf("%s is %q, want %q (%v)", path, out, want, err)
			}
		}
	})
}

// requireReach proves that packets go both ways: a port that nothing listens
// on refuses the connection.
func requireReach(t *testing.T, l *Lab, from Part, to string) {
	t.Helper()
	// On a busy machine a packet may be lost: TCP tries again after 1, 3 and 7 s.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := l.dial(ctx, from, "tcp", to+":9")
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s does not reach %s: %v", from, to, err)
	}
}

func TestControlPlane(t *testing.T) {
	l := bring(t, "labctl", nil)
	ctx := t.Context()
	connect := func() *nats.Conn {
		nc, err := l.NATSAdmin()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	streams := func(nc *nats.Conn) (names []string) {
		js, err := nc.JetStream()
		if err != nil {
			t.Fatal(err)
		}
		for name := range js.StreamNames() {
			names = append(names, name)
		}
		return names
	}
	js, err := connect().JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.AddStream(&nats.StreamConfig{Name: "KEPT"}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.KillNATS(), l.StartNATS(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := streams(connect()); len(got) != 4 {
		t.Errorf("streams after a restart: %v", got)
	}
	if err := errors.Join(l.WipeNATS(), l.StartNATS(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := streams(connect()); len(got) != 3 { // which setup has made
		t.Errorf("streams after a wipe: %v", got)
	}

	if err := errors.Join(l.AddNamespace(ctx, "kept"), l.KillAPIServer()); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Kube().CoreV1().Namespaces().Get(ctx, "kept", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if err := l.Kube().CoreV1().Namespaces().Delete(ctx, "kept", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitCondition(t, "the namespace is finalised", func() bool {
		_, err := l.Kube().CoreV1().Namespaces().Get(ctx, "kept", metav1.GetOptions{})
		return err != nil
	})
}
