// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var apbResource = schema.GroupVersionResource{Group: "k8s.ovn.org", Version: "v1", Resource: "adminpolicybasedexternalroutes"}

func TestStandinByHand(t *testing.T) {
	l := bring(t, "labapb", nil)
	ctx := t.Context()
	pods, err := l.Populate(ctx, []string{"ns-blue"}, 2)
	if err != nil {
		t.Fatal(err)
	}
	capture, err := l.CaptureExternal()
	if err != nil {
		t.Fatal(err)
	}
	makeTenantByHand(t, l)
	applyPolicy(t, l, "egress-blue", "ns-blue", "192.168.99.13")
	awaitStatus(t, l, "egress-blue", "Success", "node1: configured external gateway IPs: 192.168.99.13")
	requests := 0
	for _, p := range pods {
		if source := awaitSource(t, p); source != "192.168.55.113" {
			t.Errorf("the server saw %s from pod %s", source, p)
		}
		requests++
	}

	// One packet in, one out: the capture's count is exact.
	c, err := pods[0].DialUDP(fmt.Sprintf("%s:%d", Server, EchoPort))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echoCapture, err := l.CaptureExternal()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		source, err := Ask(ask, c, fmt.Sprintf("packet %d", i))
		cancel()
		if err != nil || source.Addr().String() != "192.168.55.113" {
			t.Fatalf("packet %d came from %s: %v", i, source, err)
		}
	}
	result := stop(t, echoCapture)
	egress := netip.MustParseAddr("192.168.55.113")
	if n := result.BySource[egress]; n != 1000 || len(result.Foreign(egress)) > 0 {
		t.Errorf("captured %d of 1000 packets: %v", n, result.BySource)
	}

	t.Run("a flood is counted in full", func(t *testing.T) {
		flood(t, l, pods[0])
	})
	t.Run("a leak is seen", func(t *testing.T) {
		leak(t, l, pods[0])
	})
	t.Run("a second policy for the namespace fails", func(t *testing.T) {
		applyPolicy(t, l, "other", "ns-blue", "192.168.99.14")
		awaitStatus(t, l, "other", "Fail", "node2: node2 failed to apply policy: failed to update policy other: namespaces [ns-blue] are already affected by another policy: egress-blue")
		awaitStatus(t, l, "egress-blue", "Success", "")
	})
	t.Run("without the policy the pod is cut off", func(t *testing.T) {
		for _, name := range []string{"other", "egress-blue"} {
			if err := l.Dynamic().Resource(apbResource).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		awaitCondition(t, "the rule goes", func() bool {
			rules, err := l.Exec("node1", "ip", "rule")
			return err == nil && !strings.Contains(rules, "from "+pods[0].Address.String())
		})
		if source, err := pods[0].HTTPGet(ctx, ServerURL); err == nil {
			t.Errorf("the server saw %s", source)
		}
	})
	result = stop(t, capture)
	if result.BySource[pods[0].Address] == 0 {
		t.Errorf("the whole capture missed the leak: %v", result.BySource)
	}
	if foreign := result.Foreign(egress, pods[0].Address); len(foreign) > 0 {
		t.Errorf("unexpected sources: %v", foreign)
	}
	if len(result.ARP) == 0 {
		t.Error("the capture saw no ARP")
	}
}

// flood sends faster than a reader that looks at each packet by itself could
// follow, and wants each packet that the server got to be in the capture.
func flood(t *testing.T, l *Lab, p *Pod) {
	t.Helper()
	capture, err := l.CaptureExternal()
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.DialUDP(fmt.Sprintf("%s:%d", Server, HTTPPort)) // nothing listens there: no answers
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := uint64(0)
	for began := time.Now(); time.Since(began) < time.Second; {
		if _, err := c.Write([]byte("flood")); err == nil { // else the port unreachable of an earlier one
			sent++
		}
	}
	h, err := l.netlink(PartExternal)
	if err != nil {
		t.Fatal(err)
	}
	result := stop(t, capture)
	port, err := h.LinkByName(string(PartGateway))
	if err != nil {
		t.Fatal(err)
	}
	got := result.BySource[netip.MustParseAddr("192.168.55.113")]
	t.Logf("sent %d packets, captured %d", sent, got)
	if dropped := port.Attrs().Statistics.RxDropped; got+dropped < sent || got > sent {
		t.Errorf("captured %d of %d packets; the port dropped %d", got, sent, dropped)
	}
}

// leak points a node at the NIC itself, where the hand-made gateway has no
// guard, and wants the capture to tell.
func leak(t *testing.T, l *Lab, p *Pod) {
	t.Helper()
	capture, err := l.CaptureExternal()
	if err != nil {
		t.Fatal(err)
	}
	nic, err := l.LinkMAC(PartGateway, "enp1s0")
	if err != nil {
		t.Fatal(err)
	}
	hop := netip.MustParseAddr("192.168.99.13")
	if err := l.PoisonNeighbour(p.Node, hop, nic); err != nil {
		t.Fatal(err)
	}
	source, err := p.HTTPGet(t.Context(), ServerURL)
	if err != nil || source != p.Address.String() {
		t.Errorf("the leak did not happen: %q, %v", source, err)
	}
	if err := l.HealNeighbour(p.Node, hop); err != nil {
		t.Fatal(err)
	}
	if source := awaitSource(t, p); source != "192.168.55.113" {
		t.Errorf("after healing the server saw %s", source)
	}
	result := stop(t, capture)
	foreign := result.Foreign(netip.MustParseAddr("192.168.55.113"))
	if len(foreign) != 1 || foreign[p.Address] == 0 || len(result.First[p.Address]) == 0 {
		t.Errorf("the capture found %v", foreign)
	}
	if problems := result.Problems(netip.MustParseAddr("192.168.55.113")); len(problems) != 1 || !strings.Contains(problems[0], "source "+p.Address.String()) {
		t.Errorf("the capture says %q", problems)
	}
	result.KernelDrops = 1
	if problems := result.Problems(netip.MustParseAddr("192.168.55.113"), p.Address); len(problems) != 1 || !strings.Contains(problems[0], "missed 1 packets") {
		t.Errorf("the capture says %q", problems)
	}
}

func makeTenantByHand(t *testing.T, l *Lab) {
	t.Helper()
	script := `set -e
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore
echo 2 > /proc/sys/net/ipv4/conf/all/arp_announce
echo 2 > /proc/sys/net/ipv4/conf/all/rp_filter
echo 1 > /proc/sys/net/ipv4/ip_forward
ip route add 10.128.0.0/23 via 192.168.99.21
ip route add 10.128.2.0/23 via 192.168.99.22
iptables -t mangle -A PREROUTING -i mv-blue -j MARK --set-mark 1
iptables -t nat -A POSTROUTING -o enp7s0 -m mark --mark 1 -j SNAT --to-source 192.168.55.113
ip address add 192.168.55.113/32 dev enp7s0
ip link add mv-blue link enp1s0 address 02:00:c0:a8:63:0d type macvlan mode private
ip link set mv-blue up
ip address add 192.168.99.13/32 dev mv-blue`
	if _, err := l.RunInGateway("sh", "-c", script); err != nil {
		t.Fatal(err)
	}
}

func applyPolicy(t *testing.T, l *Lab, name, ns, hop string) {
	t.Helper()
	err := l.ApplyYAML(t.Context(), fmt.Sprintf(`
apiVersion: k8s.ovn.org/v1
kind: AdminPolicyBasedExternalRoute
metadata: {name: %s}
spec:
  from: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}}
  nextHops: {static: [{ip: %s}]}
`, name, ns, hop))
	if err != nil {
		t.Fatal(err)
	}
}

func awaitStatus(t *testing.T, l *Lab, name, status, message string) {
	t.Helper()
	var last any
	awaitCondition(t, fmt.Sprintf("status %s of policy %s", status, name), func() bool {
		o, err := l.Dynamic().Resource(apbResource).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		last = o.Object["status"]
		have, _, _ := unstructured.NestedString(o.Object, "status", "status")
		messages, _, _ := unstructured.NestedStringSlice(o.Object, "status", "messages")
		return have == status && (message == "" || strings.Contains(strings.Join(messages, "\n"), message))
	})
	t.Logf("policy %s: %v", name, last)
}

// awaitSource asks until an answer comes.
func awaitSource(t *testing.T, p *Pod) (source string) {
	t.Helper()
	awaitCondition(t, "an answer to "+p.String(), func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var err error
		source, err = p.HTTPGet(ctx, ServerURL)
		return err == nil
	})
	return source
}

func awaitCondition(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("in vain: %s", what)
		case <-tick.C:
		}
	}
}

func stop(t *testing.T, c *Capture) Result {
	t.Helper()
	r, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if r.KernelDrops != 0 {
		t.Fatalf("the capture missed %d packets", r.KernelDrops)
	}
	return r
}
