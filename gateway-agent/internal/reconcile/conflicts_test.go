// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// fakeProber is a network in which hosts have addresses.
type fakeProber struct {
	hosts map[netip.Addr]string
	asked []plan.Addr
}

func (p *fakeProber) Probe(_ context.Context, addrs []plan.Addr) (map[netip.Addr]string, error) {
	p.asked = append(p.asked, addrs...)
	out := map[netip.Addr]string{}
	for _, a := range addrs {
		if mac, ok := p.hosts[a.IP]; ok {
			out[a.IP] = mac
		}
	}
	return out, nil
}

// TestAnAddressThatAnotherHostHasIsNotClaimed has a host with blue's egress IP.
func TestAnAddressThatAnotherHostHasIsNotClaimed(t *testing.T) {
	b := newBench(t)
	egress := record("blue", 13).EgressIPs[0]
	network := &fakeProber{hosts: map[netip.Addr]string{egress: "02:00:00:00:00:66"}}
	b.loop.Prober = network
	b.show(1, blueAndRed(), node("n1", 0))
	if _, ok := b.pass(); ok {
		t.Error("no retry after a conflict")
	}
	status := func(name string) (bool, string, string) {
		st := b.loop.Snapshot().Statuses[Ref{"c1", name}]
		return st.Programmed, st.Reason, st.Message
	}
	if ok, reason, message := status("blue"); ok || reason != plan.ReasonConflict || !strings.Contains(message, "02:00:00:00:00:66") || !strings.Contains(message, egress.String()) {
		t.Errorf("blue: %t %s %q", ok, reason, message)
	}
	if ok, reason, _ := status("red"); !ok {
		t.Errorf("red waits for blue: %s", reason)
	}
	for a := range b.kernel.state.Addrs {
		if a.IP == egress || a.IP == record("blue", 13).GatewayIPs[0] {
			t.Errorf("the kernel has %s", a.IP)
		}
	}
	want := []plan.Addr{
		{Dev: "enp7s0", IP: egress}, {Dev: "enp7s0", IP: record("red", 14).EgressIPs[0]},
		{Dev: "enp1s0", IP: record("blue", 13).GatewayIPs[0]}, {Dev: "enp1s0", IP: record("red", 14).GatewayIPs[0]},
	}
	if !slices.Equal(network.asked, want) {
		t.Errorf("asked for %v, want %v", network.asked, want)
	}

	// Soon after nobody asks again, but for what did not get into the kernel.
	network.asked = nil
	b.pass()
	if slices.ContainsFunc(network.asked, func(a plan.Addr) bool { return a != want[2] }) {
		t.Errorf("asked again at once: %v", network.asked)
	}
	clear(network.hosts)
	b.now = b.now.Add(conflictRetry)
	b.mustPass()
	if ok, reason, _ := status("blue"); !ok {
		t.Errorf("the address is free, but blue: %s", reason)
	}
	network.asked = nil
	b.mustPass()
	b.start() // a new life finds its addresses in the kernel
	b.loop.Prober = network
	b.show(1, blueAndRed(), node("n1", 0))
	b.mustPass()
	if len(network.asked) > 0 {
		t.Errorf("asked for addresses in use: %v", network.asked)
	}
}

// slowNetwork answers once it is told to.
type slowNetwork struct {
	fakeProber
	answer chan struct{}
}

func (p *slowNetwork) Probe(ctx context.Context, addrs []plan.Addr) (map[netip.Addr]string, error) {
	select {
	case <-p.answer:
	case <-time.After(5 * time.Second):
		return nil, errors.New("it was not told to")
	}
	return p.fakeProber.Probe(ctx, addrs)
}

// watchedKernel shows the steps before it carries them out.
type watchedKernel struct {
	*fakeKernel
	before func(plan.Step)
}

func (k watchedKernel) Apply(ctx context.Context, steps []plan.Step) (failures []Failure, rest []plan.Step) {
	for _, s := range steps {
		k.before(s)
	}
	return k.fakeKernel.Apply(ctx, steps)
}

// TestLinksAreMadeWhileTheNetworkIsAsked: links are there before the answers, but
// down, and stay down for an address that somebody has.
func TestLinksAreMadeWhileTheNetworkIsAsked(t *testing.T) {
	linksAreMadeWhileTheNetworkIsAsked(t, blueAndRed())
}

// TestLinksOfIPv6AreMadeWhileTheNetworkIsAsked: their egress IPs come after they
// are up.
func TestLinksOfIPv6AreMadeWhileTheNetworkIsAsked(t *testing.T) {
	both := blueAndRed()
	for name, r := range both {
		for _, list := range [][]netip.Addr{r.GatewayIPs, r.EgressIPs} {
			for i, a := range list {
				four := a.As4()
				list[i] = netip.AddrFrom16([16]byte{0: 0xfd, 14: four[2], 15: four[3]})
			}
		}
		both[name] = r
	}
	linksAreMadeWhileTheNetworkIsAsked(t, both)
}

func linksAreMadeWhileTheNetworkIsAsked(t *testing.T, both map[string]tenant.Tenant) {
	b := newBench(t)
	b.kernel.host.IPv6 = true
	b.kernel.host.OnLink = append(b.kernel.host.OnLink, netip.MustParsePrefix("fd00::6300/120"))
	egress := both["blue"].EgressIPs[0]
	network := &slowNetwork{fakeProber{hosts: map[netip.Addr]string{egress: "02:00:00:00:00:66"}}, make(chan struct{})}
	answered, made := false, 0
	b.loop.Prober = network
	b.loop.Kernel = watchedKernel{b.kernel, func(s plan.Step) {
		if _, makes := s.(plan.MakeLink); makes {
			if made++; made == 2 && !answered {
				answered = true
				close(network.answer)
			}
		} else if letsIn(s) && !answered {
			t.Errorf("%s, and no answer yet", s)
		}
		if l, raises := s.(plan.RaiseLink); raises && l.Of == "c1/blue" {
			t.Errorf("%s, and its address is another host's", s)
		}
	}}
	b.show(1, both, node("n1", 0))
	if _, ok := b.pass(); ok {
		t.Error("no retry after a conflict")
	}
	if !answered {
		t.Error("the links waited for the answers")
	}
	if links := b.kernel.links(); len(links) != 1 || b.kernel.state.Links[links[0]].Tenant != "c1/red" {
		t.Errorf("links: %v, want red's only", b.kernel.state.Links)
	}
}

// TestClaimsAreToldAndDefended has a host claim an address that is in use.
func TestClaimsAreToldAndDefended(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed(), node("n1", 0))
	b.mustPass()
	var announced []plan.Addr
	changed, counted := 0, 0
	c := &Claims{
		Announce: func(a plan.Addr) { announced = append(announced, a) }, Snapshot: b.loop.Snapshot, External: "enp7s0",
		Changed: func() { changed++ }, Counted: func() { counted++ }, Clock: func() time.Time { return b.now }, Log: slog.New(slog.DiscardHandler),
	}
	claim := func(ip netip.Addr) {
		if c.take(Claim{ip, "02:00:00:00:00:66"}) {
			c.settle()
		}
	}
	egress := record("blue", 13).EgressIPs[0]
	claim(egress)
	for range 5 {
		b.now = b.now.Add(time.Second)
		claim(egress)
		claim(egress)
	}
	claim(netip.MustParseAddr("192.168.99.99")) // nobody's here
	if changed != 1 || counted != 12 || !slices.Equal(announced, []plan.Addr{{Dev: "enp7s0", IP: egress}}) {
		t.Errorf("changed %d times, counted %d, announced %v", changed, counted, announced)
	}
	b.now = b.now.Add(defendEvery)
	claim(egress)
	if len(announced) != 2 {
		t.Errorf("announced %v", announced)
	}
	b.trouble = c.Problems()
	b.mustPass()
	if st := b.loop.Snapshot().Statuses[Ref{"c1", "blue"}]; st.Programmed || st.Reason != plan.ReasonConflict || !strings.Contains(st.Message, "02:00:00:00:00:66") {
		t.Errorf("blue: %+v", st)
	}
	b.now = b.now.Add(conflictFor)
	c.settle()
	if len(c.Problems()) != 0 || changed != 2 {
		t.Errorf("problems %v, changed %d times", c.Problems(), changed)
	}
}
