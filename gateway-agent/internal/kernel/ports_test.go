// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/tenant"
)

// portCounts is what the agent puts between flows and reconcile.
type portCounts struct{ l *lab }

func (p portCounts) Usage(ctx context.Context, mask uint32, full int) (out reconcile.Usage, err error) {
	var u flows.Usage
	p.l.gw.Do(func() { u, err = p.l.flows.Usage(ctx, mask, full) })
	out = reconcile.Usage{Entries: u.Entries, Marks: map[uint32]reconcile.PortUse{}, Full: map[reconcile.PortTarget]int{}}
	for mark, use := range u.Marks {
		out.Marks[mark] = reconcile.PortUse{Connections: use.Connections, Busiest: reconcile.PortTarget(use.Busiest), Used: use.Used}
	}
	for t, n := range u.Full {
		out.Full[reconcile.PortTarget(t)] = n
	}
	return out, err
}

func (p portCounts) Count(ctx context.Context) (int, error) { return p.l.flows.Count(ctx) }

func (p portCounts) Lost(ctx context.Context) (reconcile.LostFlows, error) {
	lost, err := p.l.flows.Lost(ctx)
	return reconcile.LostFlows(lost), err
}

// watch makes a port watch over the tenants of in.
func (l *lab) watch(in plan.Input) *reconcile.PortWatch {
	tenants := make(map[string]reconcile.Entry)
	for _, t := range in.Tenants {
		tenants[t.Name] = reconcile.Entry{Number: t.Number, Record: t.Tenant}
	}
	snap := &reconcile.Snapshot{Memory: reconcile.Memory{Clusters: map[string]reconcile.Cluster{"demo": {Tenants: tenants}}}}
	return &reconcile.PortWatch{
		Flows: portCounts{l}, MarkMask: l.host.MarkMask, Ports: flows.Ports, Clock: time.Now, Log: slog.New(slog.DiscardHandler),
		Snapshot: func() *reconcile.Snapshot { return snap }, Changed: func() {},
	}
}

// cameFrom returns how many packets came through a tenant's link.
func (l *lab) cameFrom(tenant string) int {
	l.t.Helper()
	return int(l.counters().Tenants[tenant].FromPods.Packets)
}

// TestPortExhaustion fills all source ports of blue towards one destination
// with real connections: blue is warned before, what fails is counted, and
// nobody else, nor blue elsewhere, notices.
func TestPortExhaustion(t *testing.T) {
	for _, backend := range backends(t) {
		for _, f := range tenant.Families() {
			t.Run(backend+"/"+f.String(), func(t *testing.T) { // one after the other: packets must not get lost
				l := newLab(t, backend)
				l.pods()
				exhaust(t, l, l.plane(backend, f))
			})
		}
	}
}

func exhaust(t *testing.T, l *lab, p plane) {
	pod2 := map[tenant.Family]string{tenant.IPv4: "10.128.2.10", tenant.IPv6: "fd01:0:0:2::10"}[p.family]
	if p.family == tenant.IPv6 {
		l.pod(l.node2, pod2, p.blueGateway)
	}
	p.serve(t, p.in)
	l.gw.Sysctl("net/netfilter/nf_conntrack_udp_timeout", "600")
	w := l.watch(p.in)
	look := func() *reconcile.PortsView {
		t.Helper()
		if _, err := w.Look(context.Background()); err != nil {
			t.Fatal(err)
		}
		return w.View()
	}
	blueRef, redRef := reconcile.Ref{Cluster: "demo", Name: "ns-blue"}, reconcile.Ref{Cluster: "demo", Name: "ns-red"}
	// Nobody answers there, and nothing is said about it.
	busy, other := netip.MustParseAddrPort(at(p.silent, 53)), netip.MustParseAddrPort(at(p.silent, 54))
	one, two := l.node1.Raw(p.bluePod), l.node2.Raw(pod2)

	if v := look(); len(v.Problems) != 0 {
		t.Fatalf("problems before anything: %v", v.Problems)
	}
	began := time.Now()
	// 52,000, which is 81 %, all over the range: a dense row would fail earlier.
	ports := rand.New(rand.NewPCG(1, 1)).Perm(flows.Ports)
	// A loaded machine loses packets before they come to the gateway; those of a
	// flow that is there already change nothing.
	v := look()
	for rounds := 0; v.Tenants[blueRef].Used < 52000 && rounds < 10; rounds++ {
		for _, port := range ports[:52000] {
			one.UDP(uint16(1024+port), busy)
		}
		v = look()
	}
	if use := v.Tenants[blueRef]; use.Used != 52000 || use.Busiest.Destination != busy || use.Busiest.Egress.String() != p.blue {
		t.Errorf("at 81 %%: %+v", use)
	}
	if len(v.Problems) != 1 || v.Problems[0].Reason != reconcile.ReasonPortsNearlyExhausted || v.Problems[0].Tenant != "ns-blue" || v.Failed[blueRef] != 0 {
		t.Errorf("no warning before it is too late: %v, failed %v", v.Problems, v.Failed)
	}
	warned := time.Since(began)

	// The second pod wants ports of the first one, so that the kernel has to choose.
	const more = 18000
	before := l.cameFrom("demo/ns-blue")
	for _, port := range ports[:more] {
		two.UDP(uint16(1024+port), busy)
	}
	v = look()
	use := v.Tenants[blueRef]
	failed := l.cameFrom("demo/ns-blue") - before - (use.Used - 52000)
	t.Logf("%d of %d ports in use, %d connections failed, %d counted as blue's; warned after %s, full after %s; a look at %d entries takes %s",
		use.Used, flows.Ports, failed, v.Failed[blueRef], warned.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), v.Entries, v.Took)
	if len(v.Problems) != 1 || v.Problems[0].Reason != reconcile.ReasonPortsExhausted {
		t.Errorf("problems: %v", v.Problems)
	}
	const chatter = 10 // ARP and neighbour discovery come through the link as well
	if counted := int(v.Failed[blueRef]); failed < 20 || counted < failed-chatter || counted > failed {
		t.Errorf("%d connections failed, %d were counted", failed, counted)
	}
	if v.Lost.Dropped != 0 {
		t.Errorf("lost: %+v, but the table is not full", v.Lost)
	}

	// Red, from the same node and towards the same destination, and blue
	// towards another one.
	counted := v.Failed[blueRef]
	sources := p.sources()
	redSender := l.node1.Raw(p.redPod)
	for rounds := 0; rounds < 10 && (v.Tenants[redRef].Used < 500 || v.Tenants[blueRef].Connections < use.Used+500); rounds++ {
		for port := 3000; port < 3500; port++ {
			redSender.UDP(uint16(port), busy)
			one.UDP(uint16(port), other)
		}
		v = look()
	}
	if use := v.Tenants[redRef]; use.Used != 500 {
		t.Errorf("red has %d of 500 connections", use.Used)
	}
	if n := v.Tenants[blueRef].Connections - use.Used; n != 500 {
		t.Errorf("blue has %d of 500 connections to another destination", n)
	}
	if v.Failed[blueRef] != counted || v.Failed[redRef] != 0 {
		t.Errorf("failed: %v", v.Failed)
	}
	p.expect(t, p.bluePod, p.blue)
	p.expect(t, p.redPod, p.red)
	after := p.sources()
	for _, ip := range addrs(p.blue, p.red) {
		if n := after[ip] - sources[ip]; n < 500 {
			t.Errorf("%d of 500 packets of %s left", n, ip)
		}
	}
	p.clean(t)
}

// BenchmarkUsage measures a look at a table of b's size.
func BenchmarkUsage(b *testing.B) {
	l := newLab(b, "iptables-nft")
	l.pods()
	l.serve(l.input())
	l.gw.Sysctl("net/netfilter/nf_conntrack_udp_timeout", "600")
	one := l.node1.Raw("10.128.0.10")
	const entries = 262_000
	for i := range entries {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(20 + i/52000)}), 53)
		one.UDP(uint16(2000+i%52000), to)
	}
	n := 0
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := processorTime(b)
	b.ResetTimer()
	for b.Loop() {
		l.gw.Do(func() {
			u, err := l.flows.Usage(context.Background(), l.host.MarkMask, 50000)
			if n = u.Entries; err != nil {
				b.Error(err)
			}
		})
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(n), "entries")
	b.ReportMetric(float64((processorTime(b)-began).Milliseconds())/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/(1<<20), "MiB/op")
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestSeveralAddresses: a tenant with three egress IPs shares its pods out among
// them; each pod keeps its own.
func TestSeveralAddresses(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		in := p.in
		in.Tenants = slices.Clone(p.in.Tenants)
		last := map[tenant.Family]string{tenant.IPv4: "192.168.55.116", tenant.IPv6: "fd00:55::116"}[p.family]
		three := []string{p.blue, p.second, last}
		in.Tenants[0].EgressIPs = p.withOther(in.Tenants[0].EgressIPs, three...)
		p.serve(t, in)
		first := netip.MustParseAddr(p.bluePod).AsSlice()
		pod := func(i byte) string {
			first[len(first)-1] = 0x64 + i
			a, _ := netip.AddrFromSlice(first)
			return a.String()
		}
		for i, want := range []string{three[0], three[1], three[2], three[0]} { // by the low two bits
			l.pod(l.node1, pod(byte(i)), p.blueGateway)
			for range 3 {
				p.expect(t, pod(byte(i)), want)
			}
		}
		p.expect(t, p.redPod, p.red)

		// One address less: nobody leaves with it any more, the others stay.
		long := p.dial(t, "udp", pod(1))
		if got, err := nettest.Ask(long); got != three[1] {
			t.Fatal(got, err)
		}
		in.Tenants[0].EgressIPs = p.withOther(in.Tenants[0].EgressIPs, three[:2]...)
		p.serve(t, in)
		if got, err := nettest.Ask(long); got != three[1] {
			t.Errorf("a flow whose address stays: %q, %v", got, err)
		}
		p.expect(t, pod(2), three[0])
		p.clean(t, three...)
	})
}

// TestSpillOver fills the ports of one of blue's two addresses towards one
// destination: new connections take the other one, those that are there keep
// theirs, and other destinations do not notice.
func TestSpillOver(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		in := p.in
		in.Tenants = slices.Clone(p.in.Tenants)
		in.Tenants[0].EgressIPs = p.withOther(in.Tenants[0].EgressIPs, p.blue, p.second) // pods with an even address have the first one
		p.serve(t, in)
		l.gw.Sysctl("net/netfilter/nf_conntrack_udp_timeout", "600")
		busy := netip.MustParseAddrPort(at(p.server, 53))
		l.ext.Echo(busy.String())
		long := l.dialTo(t, "udp", p.bluePod, busy.String())
		if got, err := nettest.Ask(long); got != p.blue {
			t.Fatal(got, err)
		}

		w := l.watch(in)
		// A quarter of the ports stands for all of them: here it is about what the
		// watch and the rules do.
		w.Ports = flows.Ports / 4
		one := l.node1.Raw(p.bluePod)
		look := func() *reconcile.PortsView {
			t.Helper()
			if _, err := w.Look(context.Background()); err != nil {
				t.Fatal(err)
			}
			return w.View()
		}
		for rounds := 0; rounds < 10 && len(look().Spills) == 0; rounds++ {
			for port := range w.Ports * 95 / 100 {
				one.UDP(uint16(2000+port), busy)
			}
		}
		if len(w.View().Spills) != 1 {
			t.Fatalf("spills: %v", w.View().Spills)
		}
		in.Spills = w.View().Spills
		p.serve(t, in)

		if got := l.node1.Seen("udp", p.bluePod, busy.String()); got != p.second {
			t.Errorf("a new connection to the busy destination: seen as %s", got)
		}
		if got, err := nettest.Ask(long); got != p.blue {
			t.Errorf("the connection that was there: %q, %v", got, err)
		}
		if got := l.node1.Seen("tcp", p.bluePod, busy.String()); got != p.blue {
			t.Errorf("another protocol: seen as %s", got)
		}
		p.expect(t, p.bluePod, p.blue) // another port
		p.expect(t, p.redPod, p.red)
		if v := look(); len(v.Spills) != 1 || v.Tenants[reconcile.Ref{Cluster: "demo", Name: "ns-blue"}].Busiest.Egress.String() != p.blue {
			t.Errorf("a second look: %+v", v.Spills)
		}

		// The address has room again.
		l.gw.Run(fmt.Sprintf("conntrack -D -f ipv%d -p udp -s %s -d %s --dport 53 >/dev/null 2>&1", p.family, p.bluePod, p.server))
		if v := look(); len(v.Spills) != 0 {
			t.Errorf("spills: %v", v.Spills)
		}
		in.Spills = nil
		p.serve(t, in)
		if got := l.node1.Seen("udp", p.bluePod, busy.String()); got != p.blue {
			t.Errorf("with room again: seen as %s", got)
		}
		p.clean(t, p.second)
	})
}

func (l *lab) dialTo(t *testing.T, network, pod, to string) net.Conn {
	t.Helper()
	c, err := l.node1.Dial(network, pod, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
