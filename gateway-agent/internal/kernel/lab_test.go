// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

const server = "203.0.113.10:7"

// lab is node1 and node2 - switch - gateway - outside. Pods are addresses on
// their node's lo with a route by source, as OVN gives them.
type lab struct {
	t                    testing.TB
	sw, node1, node2, gw *nettest.Net
	ext                  *nettest.Net
	wire                 *nettest.Capture
	kernel               *kernel.Kernel
	flows                *flows.Flows
	host                 plan.Host
}

func newLab(t testing.TB, iptables string) *lab {
	t.Helper()
	l := &lab{t: t, sw: nettest.New(t), node1: nettest.New(t), node2: nettest.New(t), gw: nettest.New(t), ext: nettest.New(t)}
	l.sw.Run("ip link add br0 type bridge && ip link set br0 up")
	for nic, n := range map[string]*nettest.Net{"p1": l.node1, "p2": l.node2, "p3": l.gw} {
		name := "eth0"
		if n == l.gw {
			name = "enp1s0"
		}
		l.sw.Wire(nic, n, name)
		l.sw.Run("ip link set " + nic + " master br0")
	}
	l.gw.Wire("enp7s0", l.ext, "eth0")
	l.gw.Run(`ip address add 192.168.99.12/18 dev enp1s0
		ip address add 192.168.55.12/18 dev enp7s0
		ip route add default via 192.168.55.13`)
	l.ext.Run(`ip address add 192.168.55.13/18 dev eth0
		ip address add 203.0.113.10/32 dev lo
		ip route add 10.128.0.0/14 via 192.168.55.12
		ip route add 192.168.99.0/24 via 192.168.55.12`)
	for i, n := range []*nettest.Net{l.node1, l.node2} {
		n.Run(fmt.Sprintf("ip address add 192.168.99.%d/18 dev eth0", 21+i))
	}
	l.ext.Echo(server)
	l.wire = l.ext.Capture("eth0")

	l.host = plan.Host{Internal: "enp1s0", External: "enp7s0", MarkMask: 0xfff00000}
	l.open(iptables)
	return l
}

// open opens the kernel of the gateway, as a starting agent does.
func (l *lab) open(iptables string) {
	l.t.Helper()
	var err error
	l.gw.Do(func() {
		if l.kernel, err = kernel.New(l.host, kernel.Options{IPTables: iptables}); err == nil {
			l.flows, err = flows.Open()
		}
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { l.kernel.Close(); l.flows.Close() })
	var host plan.Host
	l.gw.Do(func() { host, err = l.kernel.Facts(context.Background()) })
	if err != nil {
		l.t.Fatal(err)
	}
	l.host = host
}

// pod gives node n a pod whose traffic goes to gateway.
func (l *lab) pod(n *nettest.Net, ip, gateway string) {
	a := netip.MustParseAddr(ip)
	b := a.AsSlice()
	table, command, flags := 100+int(b[len(b)-2])*256+int(b[len(b)-1]), "ip", ""
	if a.Is6() {
		table, command, flags = 200000+table, "ip -6", " nodad"
	}
	n.Run(fmt.Sprintf(`%[1]s address add %[2]s/%[3]d dev lo%[4]s
		%[1]s rule add from %[2]s lookup %[5]d
		%[1]s route add default via %[6]s table %[5]d`, command, ip, a.BitLen(), flags, table, gateway))
	if a.Is6() { // the kernel takes packets for it a moment later
		nettest.Wait(l.t, "the pod's address", func() bool { return strings.Contains(n.Run("ip -6 route show table local "+ip), ip) })
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func numbered(n int, name, gateway string, egress ...string) plan.Numbered {
	return plan.Numbered{Number: n, Tenant: tenant.Tenant{Cluster: "demo", Name: name, GatewayIPs: addrs(gateway), EgressIPs: addrs(egress...)}}
}

func node(name, address, subnet string) tenant.Node {
	return tenant.Node{Cluster: "demo", Name: name, Addresses: addrs(address), Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}}
}

// input is blue and red, with pods 10.128.x.10 and .11 on both nodes.
func (l *lab) input() plan.Input {
	return plan.Input{
		Host:     l.host,
		Tenants:  []plan.Numbered{numbered(1, "ns-blue", "192.168.99.13", "192.168.55.113"), numbered(2, "ns-red", "192.168.99.14", "192.168.55.114")},
		Nodes:    []tenant.Node{node("node1", "192.168.99.21", "10.128.0.0/23"), node("node2", "192.168.99.22", "10.128.2.0/23")},
		Networks: []tenant.Network{{Cluster: "demo", PodNetworks: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")}}},
	}
}

func (l *lab) pods() {
	l.pod(l.node1, "10.128.0.10", "192.168.99.13")
	l.pod(l.node1, "10.128.0.11", "192.168.99.14")
	l.pod(l.node2, "10.128.2.10", "192.168.99.13")
	l.pod(l.node2, "10.128.2.11", "192.168.99.14")
}

func (l *lab) observe() plan.State {
	l.t.Helper()
	var s plan.State
	var err error
	l.gw.Do(func() { s, err = l.kernel.Observe(context.Background()) })
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// reach brings the kernel to want, and checks that a second pass has nothing
// to do. It returns the steps taken.
func (l *lab) reach(want plan.State) []plan.Step {
	l.t.Helper()
	steps := plan.Diff(want, l.observe())
	l.apply(steps)
	if again := plan.Diff(want, l.observe()); len(again) > 0 {
		l.t.Fatalf("a second pass is not empty:\n%s\nafter:\n%s", text(again), text(steps))
	}
	return steps
}

func (l *lab) serve(in plan.Input) []plan.Step {
	l.t.Helper()
	want, problems := plan.Desired(in)
	if len(problems) > 0 {
		l.t.Fatalf("problems: %v", problems)
	}
	return l.reach(want)
}

func (l *lab) apply(steps []plan.Step) {
	l.t.Helper()
	ctx, failed := context.Background(), false
	for _, run := range plan.Runs(steps) {
		if run.Executor == plan.Kernel {
			for rest := run.Steps; len(rest) > 0; { // goes on where somebody has changed a guard
				var failures []kernel.Failure
				l.gw.Do(func() { failures, rest = l.kernel.Apply(ctx, rest) })
				for _, f := range failures {
					failed = true
					l.t.Errorf("apply: %v", f.Err)
				}
			}
			continue
		}
		var err error
		if l.gw.Do(func() { err = l.flowSteps(ctx, run.Steps) }); err != nil {
			failed = true
			l.t.Error(err)
		}
	}
	if failed {
		l.t.FailNow()
	}
}

// counters reads what has been counted so far.
func (l *lab) counters() kernel.Counters {
	l.t.Helper()
	var c kernel.Counters
	var err error
	l.gw.Do(func() { c, err = l.kernel.Counters(context.Background()) })
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *lab) flowSteps(ctx context.Context, steps []plan.Step) error {
	var matches []flows.Match
	for _, s := range steps {
		switch s := s.(type) {
		case plan.DeleteEgressFlows:
			matches = append(matches, flows.Match{Egress: s.Egress, KeepMark: s.KeepMark, Mask: s.Mask})
		case plan.DeleteMarkFlows:
			matches = append(matches, flows.Match{Mark: s.Mark, Mask: s.Mask})
		}
	}
	if len(matches) == 0 {
		return nil
	}
	_, err := l.flows.Delete(ctx, matches)
	return err
}

// clean checks that nothing but the allowed sources and the gateway's own
// address came out of the gateway.
func (l *lab) clean(allowed ...string) {
	l.t.Helper()
	ok := map[netip.Addr]bool{netip.MustParseAddr("192.168.55.12"): true}
	for _, a := range addrs(allowed...) {
		ok[a] = true
	}
	for src, n := range l.wire.Sources() {
		if src.Is4() && !ok[src] {
			l.t.Errorf("%d packets left the gateway with source %s", n, src)
		}
	}
}

func text(steps []plan.Step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintln(&b, s)
	}
	return b.String()
}

// backends are the iptables programs that exist here.
func backends(t testing.TB) []string {
	t.Helper()
	var out []string
	for _, name := range []string{"iptables-nft", "iptables-legacy"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v (install the package iptables)", err)
		}
		out = append(out, name)
	}
	return out
}
