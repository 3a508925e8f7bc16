// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// The first of 1,000 ports that the flood of each of the two tenants goes to.
const (
	bluePorts = 20000
	redPorts  = 30000
)

// flood has the pods of blue and red on node1 send in both families, 1,000
// packets a second each, until the test ends. Each is a connection of its own.
// The node keeps to the links, also when nobody answers for the gateway IPs any
// more.
func (l *lab) flood(p plane) {
	l.t.Helper()
	l.gw.Sysctl("net/netfilter/nf_conntrack_udp_timeout", "2")
	for gateway, link := range map[string]string{"192.168.99.13": "eg001", "192.168.99.14": "eg002", p.blueGateway: "eg001", p.redGateway: "eg002"} {
		mac := strings.TrimSpace(l.gw.Run("ip -o link show " + link + " | sed 's/.*ether //; s/ .*//'"))
		l.node1.Run("ip neigh replace " + gateway + " lladdr " + mac + " dev eth0 nud permanent")
	}
	stop, done := make(chan struct{}), make(chan struct{})
	senders := 0
	for pod, to := range map[string]netip.AddrPort{
		bluePod: netip.AddrPortFrom(netip.MustParseAddr("203.0.113.10"), bluePorts), "10.128.0.11": netip.AddrPortFrom(netip.MustParseAddr("203.0.113.10"), redPorts),
		p.bluePod: netip.AddrPortFrom(netip.MustParseAddr(p.server), bluePorts), p.redPod: netip.AddrPortFrom(netip.MustParseAddr(p.server), redPorts),
	} {
		raw := l.node1.Raw(pod)
		senders++
		go func() {
			defer func() { done <- struct{}{} }()
			ticks := time.NewTicker(time.Millisecond)
			defer ticks.Stop()
			for n := 0; ; {
				select {
				case <-stop:
					return
				case <-ticks.C:
				}
				raw.UDP(uint16(1024+n%60000), netip.AddrPortFrom(to.Addr(), to.Port()+uint16(n/60000%1000)))
				n++
			}
		}()
	}
	l.t.Cleanup(func() {
		close(stop)
		for range senders {
			<-done
		}
	})
}

// rows cuts steps as they are taken: each row at once.
func rows(steps []plan.Step) [][]plan.Step {
	kind := func(s plan.Step) string {
		return fmt.Sprint(plan.IsRule(s), plan.NFTLines(s) != nil, s.Executor())
	}
	var out [][]plan.Step
	for i, s := range steps {
		together := plan.IsRule(s) || plan.NFTLines(s) != nil || s.Executor() == plan.Flows
		if i > 0 && together && kind(s) == kind(steps[i-1]) {
			out[len(out)-1] = append(out[len(out)-1], s)
		} else {
			out = append(out, []plan.Step{s})
		}
	}
	return out
}

// leaving counts what leaves of a flood.
type leaving struct {
	recorded []*nettest.Recording
	read     []int
}

// since returns how many packets of the flood have left since the last call, and
// which of them had a source that is not in the list.
func (o *leaving) since(allowed []netip.Addr) (right int, wrong map[string]int) {
	wrong = map[string]int{}
	for i, r := range o.recorded {
		packets := r.Packets()
		for _, b := range packets[o.read[i]:] {
			w := read(b)
			ours := w.dport >= bluePorts && w.dport < bluePorts+1000 || w.dport >= redPorts && w.dport < redPorts+1000
			switch {
			case ours && slices.Contains(allowed, w.src):
				right++
			case ours:
				wrong[fmt.Sprintf("%s to port %d", w.src, w.dport/1000*1000)]++
			}
		}
		o.read[i] = len(packets)
	}
	return right, wrong
}

// removals are changes that take a translation from somebody.
func removals(p plane) map[string]func(in *plan.Input) {
	return map[string]func(in *plan.Input){
		"both go":     func(in *plan.Input) { in.Tenants = in.Tenants[2:] },
		"one goes":    func(in *plan.Input) { in.Tenants = in.Tenants[1:] },
		"all go":      func(in *plan.Input) { in.Tenants = nil },
		"IPv6 goes":   func(in *plan.Input) { in.Tenants[0] = numbered(1, "ns-blue", "192.168.99.13", blue) },
		"IPv6 of red": func(in *plan.Input) { in.Tenants[1] = numbered(2, "ns-red", "192.168.99.14", red, "192.168.55.121") },
		"others": func(in *plan.Input) {
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = addrs("192.168.55.115", p.second), addrs("192.168.55.116", "fd00:55::116")
		},
		"more and fewer": func(in *plan.Input) {
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = addrs(blue, "192.168.55.115", p.blue, p.second), addrs(red, p.red)
		},
		"swapped": func(in *plan.Input) {
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
		},
		"one of several handed over": func(in *plan.Input) {
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = addrs("192.168.55.121", "fd00:55::121"), addrs(red, p.red)
		},
	}
}

// TestRemovalWithoutExitGuard: somebody has emptied the exit guard, just after the
// agent has looked, and tenants lose their translation, for good or for another
// address: in no moment of it, however long it takes, does a new packet of
// theirs leave with a pod's address.
func TestRemovalWithoutExitGuard(t *testing.T) {
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			l.pods()
			p := l.plane(backend, tenant.IPv6)
			// Blue is served by the maps, red, with several addresses, by the trees.
			p.in.Tenants[1].EgressIPs = addrs(red, "192.168.55.121", p.red, "fd00:55::121")
			p.in.Tenants = append(p.in.Tenants, numbered(3, "ns-other", "192.168.99.15", "192.168.55.130"))
			p.serve(t, p.in)
			l.flood(p)
			wire := &leaving{[]*nettest.Recording{l.ext.Record("eth0"), l.ext.RecordIPv6("eth0")}, []int{0, 0}}
			all := slices.Concat(p.in.Tenants[0].EgressIPs, p.in.Tenants[1].EgressIPs, addrs("192.168.55.115", "192.168.55.116", p.second, "fd00:55::116"))
			for name, change := range removals(p) {
				t.Run(name, func(t *testing.T) {
					in := p.in
					in.Tenants = slices.Clone(p.in.Tenants)
					change(&in)
					steps := plan.Diff(l.want(in), l.observe())
					l.gw.Run("nft flush chain inet egw-guard exit")
					for _, row := range rows(steps) {
						l.apply(row)
						time.Sleep(10 * time.Millisecond)
					}
					right, wrong := wire.since(all)
					if len(wrong) > 0 {
						t.Errorf("%v\n%s", wrong, text(steps))
					}
					if right == 0 {
						t.Error("no packet left while that was made: this test shows nothing")
					}
					p.serve(t, p.in)
				})
			}
		})
	}
}
