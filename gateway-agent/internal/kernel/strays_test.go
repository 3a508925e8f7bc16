// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestStrays lets a node send past the tenant's link, for a connection that
// began on the right way and for a new one.
func TestStrays(t *testing.T) {
	l := newLab(t, "iptables-nft")
	l.pods()
	l.serve(l.input())
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
	c, err := l.node1.Dial("udp", "10.128.0.10", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := nettest.Ask(c); got != blue {
		t.Fatalf("the server saw %s, %v", got, err)
	}
	expect(t, l.node2, "10.128.2.10", blue)
	if got := strays(); len(got) != 0 {
		t.Errorf("all are on the right way, but %v", got)
	}

	mac := strings.Fields(l.gw.Run("ip -o link show enp1s0 | sed 's/.*ether //'"))[0]
	l.node1.Run("ip neigh replace 192.168.99.13 lladdr " + mac + " dev eth0 nud permanent")
	if got, err := nettest.Ask(c); got != blue {
		t.Errorf("an established connection: the server saw %s, %v", got, err)
	}
	pod := netip.MustParseAddr("10.128.0.10")
	if got := strays(); !got[plan.Stray{Pod: pod, Number: 1}] || len(got) != 1 {
		t.Errorf("after a packet of an established connection: %v", got)
	}
	if got := l.node1.Seen("udp", "10.128.0.10", server); got == blue || got == pod.String() {
		t.Errorf("a new connection past the link: the server saw %s", got)
	}
	if got := strays(); !got[plan.Stray{Pod: pod}] || len(got) != 2 {
		t.Errorf("after a packet of a new connection: %v", got)
	}
	// What the kernel counts by itself is no reason to change anything.
	if steps := l.serve(l.input()); len(steps) > 0 {
		t.Errorf("a pass changes:\n%s", text(steps))
	}
	l.clean(blue, red)
}

// TestNodeSources: OVN sends pods with the address of their node for a while
// after a restart. They come by the tenant's link, and leave as it does.
func TestNodeSources(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.serve(l.input())
		// A socket bound to the node's own address, routed as a pod is.
		l.node1.Run(`ip rule add from 192.168.99.21 to 203.0.113.0/24 lookup 700
			ip route add default via 192.168.99.14 table 700`)
		for _, network := range []string{"udp", "tcp", "udp"} {
			if got := l.node1.Seen(network, "192.168.99.21", server); got != red {
				t.Errorf("%s: the server saw %s, want %s", network, got, red)
			}
		}
		var counters kernel.Counters
		var err error
		l.gw.Do(func() { counters, err = l.kernel.Counters(context.Background()) })
		if n := counters.NodeSources["demo/ns-red"]; err != nil || n != 3 || len(counters.NodeSources) != 1 {
			t.Errorf("counted %v, %v; want 3 of ns-red", counters.NodeSources, err)
		}
		l.clean(blue, red)
	})
}
