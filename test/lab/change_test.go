// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNodesComeChangeAndGo(t *testing.T) {
	l := bring(t, "labnodes", nil)
	ctx := t.Context()
	if err := l.AddNamespace(ctx, "ns-blue"); err != nil {
		t.Fatal(err)
	}
	for round := range 2 { // the second time under the names of the first
		n, err := l.AddNode(ctx, NodeSpec{Name: "node3"})
		if err != nil {
			t.Fatal(err)
		}
		if n.Address.String() != "192.168.99.23" || n.Subnet.String() != "10.128.4.0/23" {
			t.Errorf("round %d: node3 has %s and %s", round, n.Address, n.Subnet)
		}
		p, err := l.AddPod(ctx, "node3", "ns-blue")
		if err != nil {
			t.Fatal(err)
		}
		requireReach(t, l, "node1", p.Address.String())
		requireReach(t, l, PartGateway, n.Address.String())
		if err := l.RemoveNode(ctx, "node3"); err != nil {
			t.Fatal(err)
		}
		awaitCondition(t, "the pod goes with its node", func() bool {
			pods, err := l.Kube().CoreV1().Pods("ns-blue").List(ctx, metav1.ListOptions{})
			return err == nil && len(pods.Items) == 0
		})
	}

	if err := l.SetNodeSubnet(ctx, "node2", netip.MustParsePrefix("10.129.0.0/24")); err != nil {
		t.Fatal(err)
	}
	if err := l.SetNodeAddress(ctx, "node2", netip.MustParseAddr("192.168.99.40")); err != nil {
		t.Fatal(err)
	}
	p, err := l.AddPod(ctx, "node2", "ns-blue")
	if err != nil {
		t.Fatal(err)
	}
	if p.Address.String() != "10.129.0.10" {
		t.Errorf("the pod has %s", p.Address)
	}
	requireReach(t, l, "node1", p.Address.String())
	requireReach(t, l, p.Part, "192.168.99.40")
	requireReach(t, l, PartGateway, "192.168.99.40")
	object, err := l.Kube().CoreV1().Nodes().Get(ctx, "node2", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := object.Annotations[subnetsAnnotation]; got != `{"default":["10.129.0.0/24"]}` {
		t.Errorf("subnet annotation is %s", got)
	}
	if got := object.Annotations[gatewayAnnotation]; !strings.Contains(got, `"192.168.99.40/18"`) {
		t.Errorf("gateway annotation is %s", got)
	}
	if got := object.Status.Addresses[0].Address; got != "192.168.99.40" {
		t.Errorf("InternalIP is %s", got)
	}
}

func TestManyPodsShareANetwork(t *testing.T) {
	l := bring(t, "labmany", nil)
	ctx := t.Context()
	const count = 100
	makeTenantByHand(t, l)
	applyPolicy(t, l, "egress-many", "ns-many", "192.168.99.13")
	if err := l.AddNamespace(ctx, "ns-many"); err != nil {
		t.Fatal(err)
	}
	pods := make([]*Pod, count)
	errs := make([]error, count)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() { pods[i], errs[i] = l.AddPod(ctx, fmt.Sprintf("node%d", 1+i%2), "ns-many", SharedNetwork()) })
	}
	wg.Wait()
	t.Logf("%d pods in %s", count, time.Since(began))
	seen := map[netip.Addr]bool{}
	for i, p := range pods {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if seen[p.Address] {
			t.Fatalf("%s twice", p.Address)
		}
		seen[p.Address] = true
		if source := awaitSource(t, p); source != "192.168.55.113" {
			t.Errorf("the server saw %s from pod %s", source, p)
		}
	}
	if err := l.RemovePod(ctx, pods[0]); err != nil {
		t.Error(err)
	}
	if _, err := pods[2].HTTPGet(ctx, ServerURL); err != nil {
		t.Error(err)
	}
}

func TestResetGateway(t *testing.T) {
	l := bring(t, "labreset", nil)
	before, err := l.LinkMAC(PartGateway, "enp1s0")
	if err != nil {
		t.Fatal(err)
	}
	capture, err := l.CaptureExternal()
	if err != nil {
		t.Fatal(err)
	}
	sleeper, err := l.Start(PartGateway, "sleeper", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	makeTenantByHand(t, l)
	for range 3 {
		if err := l.ResetGateway(); err != nil {
			t.Fatal(err)
		}
		if out, err := l.HTTPGet(t.Context(), PartGateway, ServerURL); err != nil || out != GatewayExternal {
			t.Errorf("after the reset: %q, %v", out, err)
		}
	}
	if sleeper.Running() {
		t.Error("a process survived the reset")
	}
	after, err := l.LinkMAC(PartGateway, "enp1s0")
	if err != nil || after.String() != before.String() {
		t.Errorf("enp1s0 had %s and has %s (%v)", before, after, err)
	}
	if out, err := l.RunInGateway("ip", "-brief", "address"); err != nil || strings.Contains(out, "mv-blue") {
		t.Errorf("links after the reset: %s %v", out, err)
	}
	if r := stop(t, capture); r.BySource[netip.MustParseAddr(GatewayExternal)] == 0 {
		t.Error("the capture did not survive the reset")
	}
}

// TestCrash kills the lab command at work, and wants one call to heal it.
func TestCrash(t *testing.T) {
	requireRoot(t)
	const name = "labcrash"
	t.Cleanup(func() {
		if err := DownByName(name); err != nil {
			t.Error(err)
		}
	})
	for _, line := range []string{"networks are up", "control plane is up", "The lab is up"} {
		cmd := exec.CommandContext(t.Context(), testBin+"/lab", "up", "--name", name, "--dir", t.TempDir(), "--agents=false")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		seen := false
		for s := bufio.NewScanner(out); !seen && s.Scan(); {
			seen = strings.Contains(s.Text(), line)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		if !seen {
			t.Fatalf("lab up never said %q", line)
		}
		if processes, err := Processes(name); err != nil || len(processes) == 0 && line != "networks are up" {
			t.Errorf("after %q nothing was left to heal (%v)", line, err)
		}
		began := time.Now()
		if err := DownByName(name); err != nil {
			t.Fatal(err)
		}
		t.Logf("killed after %q, healed in %s", line, time.Since(began))
		requireNothing(t, name)
	}
}

// TestOwnersDeath kills a program that owns a lab: the processes must die with
// it, by themselves.
func TestOwnersDeath(t *testing.T) {
	requireRoot(t)
	const name = "labowner"
	if os.Getenv(ownerVariable) != "" {
		l, err := Up(t.Context(), Options{Name: name, Dir: t.TempDir(), BinDir: testBin})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("owner is ready", l.Name())
		select {}
	}
	t.Cleanup(func() {
		if err := DownByName(name); err != nil {
			t.Error(err)
		}
		requireNothing(t, name)
	})
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestOwnersDeath$")
	cmd.Env = append(os.Environ(), ownerVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan() && !strings.Contains(s.Text(), "owner is ready"); {
		t.Log(s.Text())
	}
	before, err := Processes(name)
	if err != nil || len(before) == 0 {
		t.Errorf("the lab has no processes (%v)", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	awaitCondition(t, "the lab's processes die with their owner", func() bool {
		left, err := Processes(name)
		return err == nil && len(left) == 0
	})
}

const ownerVariable = "LAB_TEST_OWNER"

func TestTwoLabsAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	labs := make([]*Lab, 2)
	for i := range labs {
		labs[i] = bring(t, fmt.Sprintf("labpair%d", i), nil)
	}
	for _, l := range labs {
		wg.Go(func() {
			pods, err := l.Populate(t.Context(), []string{"ns-blue"}, 1)
			if err != nil {
				t.Error(err)
				return
			}
			requireReach(t, l, pods[0].Part, pods[1].Address.String())
		})
	}
	wg.Wait()
	if err := labs[0].Down(); err != nil {
		t.Fatal(err)
	}
	requireReach(t, labs[1], "node1", "192.168.99.22")
}

// TestNames keeps DownByName from taking another lab's namespaces.
func TestNames(t *testing.T) {
	for _, name := range []string{"", "a-b", "../x", "Lab", "1x"} {
		if err := DownByName(name); err == nil {
			t.Errorf("name %q passes", name)
		}
	}
}
