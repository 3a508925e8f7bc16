// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"net/netip"
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestStrays lets a node send past the tenant's link, for a connection that
// began on the right way and for a new one.
func TestStrays(t *testing.T) {
	eachFamily(t, strays)
}

func strays(t *testing.T, l *lab, p plane) {
	p.serve(t, p.in)
	strays := func() map[plan.Stray]bool {
		var list []plan.Stray
		var err error
		l.gw.Do(func() { list, err = l.kernel.Strays(context.Background()) })
		if err != nil {
			t.Fatal(err)
		}
		out := map[plan.Stray]bool{}
		for _, s := range list {
			s.Packets = 0
			out[s] = true
		}
		return out
	}
	c, err := l.node1.Dial("udp", p.bluePod, at(p.server, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := nettest.Ask(c); got != p.blue {
		t.Fatalf("the server saw %s, %v", got, err)
	}
	p.expect(t, p.redPod, p.red)
	if got := strays(); len(got) != 0 {
		t.Errorf("all are on the right way, but %v", got)
	}

	p.stale(p.blueGateway)
	if got, err := nettest.Ask(c); got != p.blue {
		t.Errorf("an established connection: the server saw %s, %v", got, err)
	}
	pod := netip.MustParseAddr(p.bluePod)
	if got := strays(); !got[plan.Stray{Pod: pod, Number: 1}] || len(got) != 1 {
		t.Errorf("after a packet of an established connection: %v", got)
	}
	if got := l.node1.Seen("udp", p.bluePod, at(p.server, 7)); got == p.blue || got == pod.String() {
		t.Errorf("a new connection past the link: the server saw %s", got)
	}
	if got := strays(); !got[plan.Stray{Pod: pod}] || len(got) != 2 {
		t.Errorf("after a packet of a new connection: %v", got)
	}
	// What the kernel counts by itself is no reason to change anything.
	if steps := l.serve(p.in); len(steps) > 0 {
		t.Errorf("a pass changes:\n%s", text(steps))
	}
	p.clean(t)
}

// TestNodeSources: OVN sends pods with the address of their node for a while
// after a restart. They come by the tenant's link, and leave as it does.
func TestNodeSources(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		// A socket bound to the node's own address, routed as a pod is.
		l.node1.Run(p.ip() + " rule add from " + p.node1 + " to " + p.server + " lookup 700")
		l.node1.Run(p.ip() + " route add default via " + p.redGateway + " table 700")
		for _, network := range []string{"udp", "tcp", "udp"} {
			if got := l.node1.Seen(network, p.node1, at(p.server, 7)); got != p.red {
				t.Errorf("%s: the server saw %s, want %s", network, got, p.red)
			}
		}
		if counted := l.counters().NodeSources; counted["demo/ns-red"] != 3 || len(counted) != 1 {
			t.Errorf("counted %v; want 3 of ns-red", counted)
		}
		p.clean(t)
	})
}
