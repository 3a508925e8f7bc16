// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// routeWithin fails the test unless the gateway has exactly this next hop for
// a subnet (none, if it is invalid) within a second of the call.
func (w *world) routeWithin(subnet netip.Prefix, via netip.Addr) {
	w.t.Helper()
	start := time.Now()
	w.until("the route of "+subnet.String(), func() (bool, error) {
		s, err := w.Gateway()
		if err != nil {
			return false, err
		}
		var hops []string
		for line := range strings.Lines(s.Routes) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == subnet.String() {
				hops = append(hops, f[2])
			}
		}
		if !via.IsValid() {
			return len(hops) == 0, nil
		}
		return len(hops) == 1 && hops[0] == via.String(), nil
	})
	w.t.Logf("route of %s via %s after %s", subnet, via, time.Since(start).Round(time.Millisecond))
	if took := time.Since(start); took > time.Second {
		w.t.Errorf("the route of %s followed after %s, want at most 1 s", subnet, took)
	}
}

// Proof 3: routes follow the nodes.
func TestNodesJoinChangeAndLeave(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	old := w.pod("node1", "ns-blue")
	w.seenAs(old, blue)
	stays := w.udp(old)

	n3, err := w.AddNode(w.ctx, lab.NodeSpec{Name: "node3"})
	w.must(err)
	w.routeWithin(n3.Subnet, n3.Address)
	w.seenAs(w.pod("node3", "ns-blue"), blue)

	t.Run("the node changes its address", func(t *testing.T) {
		moved := netip.MustParseAddr("192.168.99.41")
		w.must(w.SetNodeAddress(w.ctx, "node3", moved))
		w.routeWithin(n3.Subnet, moved)
		w.seenAs(w.pod("node3", "ns-blue"), blue)
	})
	t.Run("the node changes its subnet", func(t *testing.T) {
		next := netip.MustParsePrefix("10.128.40.0/23")
		before, _ := w.Node("node3")
		w.must(w.SetNodeSubnet(w.ctx, "node3", next))
		w.routeWithin(next, before.Address)
		w.routeWithin(before.Subnet, netip.Addr{})
		w.seenAs(w.pod("node3", "ns-blue"), blue)
	})
	t.Run("the node leaves", func(t *testing.T) {
		n, _ := w.Node("node3")
		w.must(w.RemoveNode(w.ctx, "node3"))
		w.routeWithin(n.Subnet, netip.Addr{})
	})
	w.unharmed("a flow from a node that stayed", stays, blue)
}

// A subnet that OVN gives to another node must not be without a route in
// between: the pods behind it may long be talking.
func TestSubnetMovesInOneStep(t *testing.T) {
	w := newWorld(t)
	subnet, own := netip.MustParsePrefix("10.128.60.0/23"), netip.MustParsePrefix("10.128.62.0/23")
	first, second := netip.MustParseAddr("192.168.99.45"), netip.MustParseAddr("192.168.99.46")
	w.until("the agents to be at work", func() (bool, error) {
		s, err := w.Gateway()
		return strings.Contains(s.Routes, "192.168.99.21"), err
	})
	w.nodeObject("first", subnet, first)
	w.nodeObject("second", own, second)
	w.routeWithin(subnet, first)
	w.routeWithin(own, second)

	monitor, err := w.Start(lab.PartGateway, "monitor", nil, "ip", "monitor", "route")
	w.must(err)
	// The first line proves that it listens.
	w.until("ip monitor to listen", func() (bool, error) {
		if _, err := w.RunInGateway("sh", "-c", "ip route add blackhole 198.51.100.0/24 && ip route del blackhole 198.51.100.0/24"); err != nil {
			return false, err
		}
		b, err := os.ReadFile(monitor.LogPath)
		return strings.Contains(string(b), "198.51.100.0/24"), err
	})

	w.nodeObject("second", subnet, second) // both claim it now: the holder keeps it
	w.must(w.Core.CoreV1().Nodes().Delete(w.ctx, "first", metav1.DeleteOptions{}))
	w.routeWithin(subnet, second)
	w.routeWithin(own, netip.Addr{})
	w.until("ip monitor to have seen it", func() (bool, error) {
		b, err := os.ReadFile(monitor.LogPath)
		return strings.Contains(string(b), subnet.String()+" via "+second.String()), err
	})
	log, err := os.ReadFile(monitor.LogPath)
	w.must(err)
	for line := range strings.Lines(string(log)) {
		if strings.HasPrefix(line, "Deleted "+subnet.String()) {
			t.Errorf("the route was deleted on its way to the other node:\n%s", log)
		}
	}
}

// nodeObject makes or changes a node that exists in the API only.
func (w *world) nodeObject(name string, subnet netip.Prefix, addr netip.Addr) {
	w.t.Helper()
	annotations := map[string]string{
		"k8s.ovn.org/node-subnets":        `{"default":["` + subnet.String() + `"]}`,
		"k8s.ovn.org/node-primary-ifaddr": `{"ipv4":"` + addr.String() + `/18"}`,
	}
	nodes := w.Core.CoreV1().Nodes()
	n, err := nodes.Get(w.ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = nodes.Create(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}, metav1.CreateOptions{})
		w.must(err)
		return
	}
	w.must(err)
	n.Annotations = annotations
	_, err = nodes.Update(w.ctx, n, metav1.UpdateOptions{})
	w.must(err)
}
