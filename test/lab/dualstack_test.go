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
)

// The IPv6 plane is as good as the IPv4 one: nodes, pods, servers, the stand-in,
// the capture, and changes of nodes.
func TestDualStack(t *testing.T) {
	l := bring(t, "labdual", func(o *Options) { o.DualStack = true })
	ctx := t.Context()
	pods, err := l.Populate(ctx, []string{"ns-blue"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(pods[0].Address6, pods[1].Address6); got != "fd01:0:0:1::a fd01:0:0:2::a" {
		t.Errorf("the pods have %s", got)
	}
	requireReach(t, l, "node1", "["+GatewayInternal6+"]")
	requireReach(t, l, "node2", "["+LANHost6+"]")
	requireReach(t, l, PartGateway, "["+nodeAddress6(1).String()+"]")
	requireReach(t, l, pods[0].Part, "["+pods[1].Address6.String()+"]")
	if out, err := l.HTTPGet(ctx, PartGateway, ServerURL6); err != nil || out != GatewayExternal6 {
		t.Errorf("the gateway is seen as %q, %v", out, err)
	}
	if source, err := pods[0].HTTPGet(ctx, ServerURL6); err == nil {
		t.Errorf("a pod without a policy is seen as %s", source)
	}
	node, err := l.Kube().CoreV1().Nodes().Get(ctx, "node1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := node.Annotations[subnetsAnnotation]; got != `{"default":["10.128.0.0/23","fd01:0:0:1::/64"]}` {
		t.Errorf("subnet annotation is %s", got)
	}
	if got := node.Annotations[gatewayAnnotation]; !strings.Contains(got, `["192.168.99.21/18","fd00:99::21/64"]`) {
		t.Errorf("gateway annotation is %s", got)
	}

	capture, err := l.CaptureExternal()
	if err != nil {
		t.Fatal(err)
	}
	script := `set -e
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
for n in 1 2; do ip route add fd01:0:0:$n::/64 via fd00:99::2$n; done
ip6tables -t nat -A POSTROUTING -o enp7s0 -s fd01::/48 -j SNAT --to-source 2001:db8:55::113
ip address add 2001:db8:55::113/128 dev enp7s0 nodad
ip address add fd00:99::13/128 dev enp1s0 nodad`
	if _, err := l.RunInGateway("sh", "-c", script); err != nil {
		t.Fatal(err)
	}
	applyPolicy(t, l, "egress-blue", "ns-blue", "fd00:99::13")
	awaitStatus(t, l, "egress-blue", "Success", "node1: configured external gateway IPs: fd00:99::13")
	for _, p := range pods {
		awaitCondition(t, "an answer over IPv6 to "+p.String(), func() bool {
			ask, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			source, err := p.HTTPGet(ask, ServerURL6)
			if err == nil && source != "2001:db8:55::113" {
				t.Errorf("pod %s is seen as %s", p, source)
			}
			return err == nil
		})
		if source, err := p.HTTPGet(ctx, ServerURL); err == nil {
			t.Errorf("a hop of the other family leads IPv4 outside too: seen as %s", source)
		}
	}
	if r := stop(t, capture); r.BySource[netip.MustParseAddr("2001:db8:55::113")] == 0 || len(r.Foreign(netip.MustParseAddr("2001:db8:55::113"))) > 0 {
		t.Errorf("the capture saw %v", r.BySource)
	}

	if err := l.SetNodeSubnet(ctx, "node2", netip.MustParsePrefix("fd01:0:0:77::/64")); err != nil {
		t.Fatal(err)
	}
	if err := l.SetNodeAddress(ctx, "node2", netip.MustParseAddr("fd00:99::40")); err != nil {
		t.Fatal(err)
	}
	p, err := l.AddPod(ctx, "node2", "ns-blue", SharedNetwork())
	if err != nil {
		t.Fatal(err)
	}
	requireReach(t, l, "node1", "[fd01:0:0:77::a]")
	requireReach(t, l, p.Part, "[fd00:99::40]")
	if err := l.RemovePod(ctx, p); err != nil {
		t.Error(err)
	}
}
