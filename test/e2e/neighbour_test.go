// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// Proof 8: a node believes that the gateway IP is at the VM's own MAC address,
// so its packets arrive past the tenant's link. They are refused, they do not
// leak, and nothing that they left behind outlives the error.
func TestStaleNeighbourEntry(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p, other := w.pod("node1", "ns-blue"), w.pod("node2", "ns-blue")
	w.seenAs(p, blue)
	w.seenAs(other, blue)
	established := w.udp(p)
	unaffected := w.udp(other)

	mac, err := w.LinkMAC(lab.PartGateway, "enp1s0")
	w.must(err)
	w.must(w.PoisonNeighbour("node1", blue.GatewayIP(), mac))

	// A socket that begins while the entry is wrong.
	conn, err := p.DialUDP(fmt.Sprintf("%s:%d", lab.Server, lab.EchoPort))
	w.must(err)
	locked := scenario.StartUDP(w.ctx, conn, 10*time.Millisecond)
	w.until("the new socket to be refused", func() (bool, error) { return locked.Snapshot().Refused > 5, nil })
	if r := locked.Snapshot(); r.Answered > 0 {
		t.Errorf("%d packets of an unmarked flow were answered, seen as %v", r.Answered, r.Sources)
	}
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
	if source, err := scenario.SeenAs(ctx, p); err == nil {
		t.Errorf("a new connection past the tenant's link was answered, seen as %s", source)
	}
	cancel()
	w.answers(established, 20) // a translated flow survives a stale entry

	// It is seen, and said where the tenant's owner looks: which node it is.
	stale, err := w.WaitTenant(w.ctx, "ns-blue", soon, "to be told of the stale entry", func(t scenario.Tenant) bool {
		return !t.Ready() && t.Condition("Programmed").Reason == "StaleNeighbour"
	})
	w.must(err)
	if m := stale.Condition("Programmed").Message; !strings.Contains(m, "node1") || strings.Contains(m, "node2") {
		t.Errorf("the condition names the wrong node: %q", m)
	}
	// The gateway's status says the same, of what has no connection yet too.
	out, err := w.GatewayCommand("status", "--output", "json")
	if told := fmt.Sprint(out, err); !strings.Contains(told, `"node": "lab/node1",
      "tenant": "lab/ns-blue"`) || strings.Contains(told, `"node": "lab/node1",
      "packets"`) {
		t.Errorf("status names other tenants, or none: %s", told)
	}

	w.must(w.HealNeighbour("node1", blue.GatewayIP()))
	healed := time.Now()
	w.answers(locked, 20)
	t.Logf("the same UDP socket works %s after the entry was healed", time.Since(healed).Round(time.Millisecond))
	w.seenAs(p, blue)
	if r := locked.Stop(); len(r.Sources) != 1 || r.Sources[blue.EgressIP()] == 0 {
		t.Errorf("the socket was seen as %v, want %s only", r.Sources, blue.EgressIP())
	}
	w.ready("ns-blue") // nothing more has come the wrong way for a while
	t.Logf("ready again %s after it", time.Since(healed).Round(time.Second))
	w.unharmed("a flow that was translated before", established, blue)
	w.unharmed("a flow from the other node", unaffected, blue)
}

// A connection that began untranslated before any of our rules stood (the agent
// came late) is ended when the node resolves the gateway IP.
func TestUntranslatedFlowFromBeforeIsHealed(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)

	// As if the VM had routed the flow before the agent ran: an entry that says
	// "not translated", for the very socket that the pod uses now.
	conn, err := p.DialUDP(fmt.Sprintf("%s:%d", lab.Server, lab.EchoPort))
	w.must(err)
	port := conn.LocalAddr().String()
	port = port[len(p.Address.String())+1:]
	mac, err := w.LinkMAC(lab.PartGateway, "enp1s0")
	w.must(err)
	w.must(w.PoisonNeighbour("node1", blue.GatewayIP(), mac))
	out, err := w.RunInGateway("conntrack", "-I", "-p", "udp", "-t", "300", "-s", p.Address.String(), "-d", lab.Server,
		"--sport", port, "--dport", fmt.Sprint(lab.EchoPort))
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := scenario.StartUDP(w.ctx, conn, 10*time.Millisecond)
	w.until("the locked-in flow to be refused", func() (bool, error) { return f.Snapshot().Refused > 5, nil })

	w.must(w.HealNeighbour("node1", blue.GatewayIP()))
	w.answers(f, 20)
	if r := f.Stop(); len(r.Sources) != 1 || r.Sources[blue.EgressIP()] == 0 {
		t.Errorf("the socket was seen as %v, want %s only", r.Sources, blue.EgressIP())
	}
}

// Pods that no tenant covers may be led to the VM all the same: by the nodes'
// own default route, as OVN does once an APB is gone. They are refused, and
// what a released tenant still sends is.
func TestPodsWithoutTenantAreRefused(t *testing.T) {
	w := newWorld(t, nodesLeadToGateway)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	w.must(w.AddNamespace(w.ctx, "ns-none"))
	none := w.pod("node2", "ns-none")

	flow := w.udp(p)
	w.must(w.Unlabel(w.ctx, "ns-blue"))
	w.must(w.WaitGone(w.ctx, "ns-blue", soon))
	w.until("the released tenant's flow to be refused", func() (bool, error) { return flow.Snapshot().Refused > 5, nil })
	if r := flow.Stop(); len(r.Sources) != 1 || r.Sources[blue.EgressIP()] == 0 {
		t.Errorf("the flow was seen as %v, want %s and then nothing", r.Sources, blue.EgressIP())
	}
	for _, p := range []*lab.Pod{p, none} {
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
		if source, err := scenario.SeenAs(ctx, p); err == nil {
			t.Errorf("pod %s has no tenant, and was seen as %s", p, source)
		}
		cancel()
	}
}

// A host outside already has an egress IP of the pool. The tenant that was given
// it is not served, says why and names the host; others are. When the address
// is free, the tenant is served by itself.
func TestAddressOfAnotherHost(t *testing.T) {
	w := newWorld(t)
	out := func(argv ...string) {
		t.Helper()
		if text, err := w.Exec(lab.PartExternal, argv...); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, text)
		}
	}
	const nic = "br0"
	out("ip", "address", "add", "192.168.55.113/32", "dev", nic)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	w.must(w.AddNamespace(w.ctx, "ns-blue"))
	w.must(w.Label(w.ctx, "ns-blue", "public"))
	refused, err := w.WaitTenant(w.ctx, "ns-blue", soon, "to be told of the conflict", func(t scenario.Tenant) bool {
		return t.Condition("Programmed").Reason == "AddressConflict"
	})
	w.must(err)
	if m := refused.Condition("Programmed").Message; !strings.Contains(m, "192.168.55.113") {
		t.Errorf("the condition does not name the address: %q", m)
	}
	red := w.tenant("ns-red", "public")
	w.seenAs(w.pod("node1", "ns-red"), red)

	out("ip", "address", "del", "192.168.55.113/32", "dev", nic)
	blue := w.ready("ns-blue")
	w.seenAs(w.pod("node1", "ns-blue"), blue)
}

// TestIPv6AddressOfAnotherHost: the same by duplicate address detection. The
// tenant keeps its other family.
func TestIPv6AddressOfAnotherHost(t *testing.T) {
	w := newWorld(t, dualStack)
	address := func(verb string) {
		t.Helper()
		if out, err := w.Exec(lab.PartExternal, "ip", "-6", "address", verb, "2001:db8:55::113/128", "dev", "br0", "nodad"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	address("add")
	w.must(w.CreatePool(w.ctx, scenario.DualPool()))
	w.must(w.AddNamespace(w.ctx, "ns-blue"))
	w.must(w.Label(w.ctx, "ns-blue", "public"))
	refused, err := w.WaitTenant(w.ctx, "ns-blue", soon, "to be told of the conflict", func(t scenario.Tenant) bool {
		return t.Condition("Programmed").Reason == "AddressConflict"
	})
	w.must(err)
	if m := refused.Condition("Programmed").Message; !strings.Contains(m, "2001:db8:55::113") {
		t.Errorf("the condition does not name the address: %q", m)
	}
	p := w.pod("node1", "ns-blue")
	w.allow(refused)
	w.must(scenario.WaitSeenAs(w.ctx, p, refused.EgressIP(), soon))
	w.unseen6(p)

	address("del")
	w.seenAs(p, w.ready("ns-blue"))
}
