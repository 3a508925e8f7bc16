// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// TestDualStackLabelToPacketAndBack is proof 1 in both families at once: label,
// be seen with the own addresses, unlabel, be gone.
func TestDualStackLabelToPacketAndBack(t *testing.T) {
	w := newWorld(t, dualStack, nodesLeadToGateway)
	w.must(w.CreatePool(w.ctx, scenario.DualPool()))
	pods := map[string][]*lab.Pod{}
	for _, ns := range []string{"ns-blue", "ns-red"} {
		w.must(w.AddNamespace(w.ctx, ns))
		for _, node := range w.Nodes() {
			pods[ns] = append(pods[ns], w.pod(node, ns))
		}
	}
	blue, red := w.tenant("ns-blue", "public"), w.tenant("ns-red", "public")
	if !blue.EgressIP6().IsValid() || !blue.GatewayIP6().IsValid() || blue.EgressIP6() == red.EgressIP6() || blue.GatewayIP6() == red.GatewayIP6() {
		t.Fatalf("want addresses of both families, each tenant its own: %s; %s", blue.Why(), red.Why())
	}
	hops, _, _, err := w.Route(w.ctx, "ns-blue")
	if want := []string{blue.GatewayIP().String(), blue.GatewayIP6().String()}; err != nil || fmt.Sprint(hops) != fmt.Sprint(want) {
		t.Errorf("the APB of ns-blue has the hops %v, want %v (error %v)", hops, want, err)
	}
	for i, p := range pods["ns-blue"] {
		w.seenAs(p, blue)
		w.seenAs(pods["ns-red"][i], red)
	}

	stays, stays4 := w.udp6(pods["ns-red"][0]), w.udp(pods["ns-red"][0])
	staysTCP := w.tcp6(pods["ns-red"][1])
	ends := w.tcp6(pods["ns-blue"][0])
	w.must(w.Unlabel(w.ctx, "ns-blue"))
	w.must(w.WaitGone(w.ctx, "ns-blue", soon))
	w.gone(blue.EgressIP().String(), blue.GatewayIP().String(), blue.EgressIP6().String(), blue.GatewayIP6().String(), "lab/ns-blue")
	ends.Stop() // it lost its way on purpose
	w.unseen6(pods["ns-blue"][0])
	w.seenAs(pods["ns-red"][1], red)

	t.Run("a tenant that returns gets its own addresses back", func(t *testing.T) {
		if again := w.tenant("ns-blue", "public"); again.EgressIP6() != blue.EgressIP6() || again.EgressIP() != blue.EgressIP() {
			t.Errorf("it had %v: %s", blue.Addresses(), again.Why())
		}
		w.seenAs(pods["ns-blue"][1], blue)
	})
	for what, f := range map[string]*scenario.Flow{"UDP over IPv6": stays, "UDP over IPv4": stays4, "TCP over IPv6": staysTCP} {
		w.unharmed("the other tenant's "+what, f, red)
	}
}

// unseen6 fails the test if the outside server answers a pod over IPv6.
func (w *world) unseen6(p *lab.Pod) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
	defer cancel()
	if source, err := scenario.SeenAs6(ctx, p); err == nil {
		w.t.Errorf("pod %s is seen as %s over IPv6", p, source)
	}
}

// A node believes that the IPv6 gateway IP is at the VM's own MAC address, as
// TestStaleNeighbourEntry has it for IPv4.
func TestStaleNeighbourEntryIPv6(t *testing.T) {
	w := newWorld(t, dualStack)
	w.must(w.CreatePool(w.ctx, scenario.DualPool()))
	blue := w.tenant("ns-blue", "public")
	p, other := w.pod("node1", "ns-blue"), w.pod("node2", "ns-blue")
	w.seenAs(p, blue)
	w.seenAs(other, blue)
	established, unaffected := w.udp6(p), w.udp6(other)

	mac, err := w.LinkMAC(lab.PartGateway, "enp1s0")
	w.must(err)
	w.must(w.PoisonNeighbour("node1", blue.GatewayIP6(), mac))
	conn, err := p.DialUDP(echo6)
	w.must(err)
	// As if the VM had routed this very flow before the agent ran: without the
	// sweep it would be refused for ever.
	local := netip.MustParseAddrPort(conn.LocalAddr().String())
	out, err := w.RunInGateway("conntrack", "-I", "-p", "udp", "-t", "300", "-s", p.Address6.String(), "-d", lab.Server6,
		"--sport", fmt.Sprint(local.Port()), "--dport", fmt.Sprint(lab.EchoPort))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	locked := scenario.StartUDP(w.ctx, conn, 10*time.Millisecond)
	w.until("the new socket to be refused", func() (bool, error) { return locked.Snapshot().Refused > 5, nil })
	if r := locked.Snapshot(); r.Answered > 0 {
		t.Errorf("%d packets of an unmarked flow were answered, seen as %v", r.Answered, r.Sources)
	}
	w.unseen6(p)
	w.answers(established, 20) // a translated flow survives a stale entry

	w.must(w.HealNeighbour("node1", blue.GatewayIP6()))
	healed := time.Now()
	w.answers(locked, 20)
	took := time.Since(healed).Round(time.Millisecond)
	t.Logf("the same UDP socket works %s after the entry was healed", took)
	if took > 8*time.Second {
		t.Error("the node's question for the gateway IP was not noticed: only the periodic sweep healed the flow")
	}
	w.seenAs(p, blue)
	if r := locked.Stop(); len(r.Sources) != 1 || r.Sources[blue.EgressIP6()] == 0 {
		t.Errorf("the socket was seen as %v, want %s only", r.Sources, blue.EgressIP6())
	}
	w.unharmed("a flow that was translated before", established, blue)
	w.unharmed("a flow from the other node", unaffected, blue)
}
