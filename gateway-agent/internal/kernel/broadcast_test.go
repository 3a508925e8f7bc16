// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

var nodeMAC = net.HardwareAddr{0x02, 0xaa, 0, 0, 0, 0x21}

// received returns how many frames each tenant link has received.
func (l *lab) received() map[string]int {
	l.t.Helper()
	out := map[string]int{}
	var err error
	l.gw.Do(func() {
		var list []os.DirEntry
		list, err = os.ReadDir("/proc/sys/net/ipv4/conf")
		for _, e := range list {
			if strings.HasPrefix(e.Name(), plan.LinkPrefix) {
				out[e.Name()] = 0
			}
		}
	})
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(l.gw.Run("cat /proc/thread-self/net/dev")) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		if fields := strings.Fields(rest); strings.HasPrefix(name, plan.LinkPrefix) && len(fields) > 1 {
			out[name], _ = strconv.Atoi(fields[1])
		}
	}
	return out
}

// TestBroadcastReachesNoOtherLink sends every kind of broadcast and multicast
// that a network has. A request for a gateway IP reaches its link, and only
// that; everything else only the VM's own NIC.
func TestBroadcastReachesNoOtherLink(t *testing.T) {
	l := newLab(t, "iptables-nft")
	l.gw.Run("ip address add fd00:99::12/64 dev enp1s0 nodad")
	l.open("iptables-nft")
	in := l.many(40)
	for i := range in.Tenants {
		in.Tenants[i].GatewayIPs = append(in.Tenants[i].GatewayIPs, netip.MustParseAddr(fmt.Sprintf("fd00:99::1:%x", i+1)))
		in.Tenants[i].EgressIPs = append(in.Tenants[i].EgressIPs, netip.MustParseAddr(fmt.Sprintf("fd00:55::1:%x", i+1)))
	}
	l.serve(in)
	own := l.gw.Capture("enp1s0")
	before := l.received()
	if len(before) != 40 {
		t.Fatalf("%d links", len(before))
	}
	const times = 20
	asker := netip.MustParseAddr("192.168.99.21")
	send := l.node1.Sender("eth0")
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	for range times {
		send(nettest.ARP(nettest.Broadcast(), nodeMAC, 1, asker, in.Tenants[6].GatewayIPs[0]))           // for eg007
		send(nettest.ARP(nettest.Broadcast(), nodeMAC, 1, asker, netip.MustParseAddr("192.168.99.12")))  // for the VM
		send(nettest.ARP(nettest.Broadcast(), nodeMAC, 1, asker, netip.MustParseAddr("192.168.99.200"))) // for another
		send(nettest.ARP(nettest.Broadcast(), nodeMAC, 2, asker, asker))                                 // gratuitous
		send(nettest.Datagram(nettest.Broadcast(), nodeMAC, "192.168.99.21", "255.255.255.255"))         // as DHCP
		send(nettest.Datagram(mac("01:00:5e:00:00:12"), nodeMAC, "192.168.99.22", "224.0.0.18"))         // as VRRP
		send(nettest.Datagram(mac("01:00:5e:00:00:01"), nodeMAC, "192.168.99.23", "224.0.0.1"))          // all hosts
	}
	l.node2.Run(`ip address add fd00:99::22/64 dev eth0 nodad
		ip neigh flush dev eth0`)
	l.node2.Do(func() { // asks for eg00a by neighbour solicitation
		if c, err := net.Dial("udp6", "[fd00:99::1:a]:9"); err == nil {
			_, _ = c.Write([]byte("?"))
			c.Close()
		}
	})
	nettest.Wait(t, "a node resolves an IPv6 gateway IP", func() bool {
		return strings.Contains(l.node2.Run("ip -6 neigh show fd00:99::1:a"), "02:00:c0:a8:64:0b")
	})
	for name, n := range l.received() {
		switch n -= before[name]; {
		case name == "eg007" && n != times:
			t.Errorf("%s received %d of %d requests", name, n, times)
		case name == "eg00a" && n < 1:
			t.Errorf("%s received nothing", name)
		case name != "eg007" && name != "eg00a" && n != 0:
			t.Errorf("%s received %d frames that were not for it", name, n)
		}
	}
	got := own.Sources()
	for _, src := range []string{"192.168.99.21", "192.168.99.22", "192.168.99.23"} {
		if n := got[netip.MustParseAddr(src)]; n != times {
			t.Errorf("the VM's own NIC received %d of %d broadcasts of %s", n, times, src)
		}
	}
}

// TestCopiesOfBroadcastAreTold: one macvlan of somebody else on the internal NIC
// brings the copies for all links back, also from a container. That is said, with
// who does it where that can be seen, and only as long as it is so.
func TestCopiesOfBroadcastAreTold(t *testing.T) {
	l := newLab(t, "iptables-nft")
	l.serve(l.many(40))
	send := l.node1.Sender("eth0")
	copied := func() int {
		before := l.received()
		for range 20 {
			send(nettest.Datagram(nettest.Broadcast(), nodeMAC, "192.168.99.21", "255.255.255.255"))
		}
		n := 0
		soon(func() bool {
			n = 0
			for name, frames := range l.received() {
				n += frames - before[name]
			}
			return n >= 800
		})
		return n
	}
	told := func() string {
		out := ""
		l.gw.Do(func() {
			for _, c := range l.kernel.Preflight(t.Context()) {
				if !c.Partial || c.Name != kernel.CheckBroadcast {
					t.Errorf("another check failed: %s", c)
				}
				out += c.String()
			}
		})
		return out
	}
	container := nettest.New(t)
	for _, c := range []struct {
		name, do string
		copied   int
		told     []string // nil: nothing
	}{
		{"ours alone", "true", 0, nil},
		{"a foreign one", "ip link add docker1 link enp1s0 type macvlan", 800, []string{"enp1s0", "docker1", "ip link set docker1 type macvlan bcqueuelen 0"}},
		{"the remedy", "ip link set docker1 type macvlan bcqueuelen 0", 0, nil},
		{"one in a container", "ip link add docker2 link enp1s0 type macvlan", 800, []string{"enp1s0", "another network namespace", "docker network ls"}},
		{"on another NIC", "ip link add docker3 link enp7s0 type macvlan", 0, nil},
		{"a foreign macvtap", "ip link add docker4 link enp1s0 type macvtap", 800, []string{"docker4"}},
	} {
		l.gw.Run(c.do)
		switch c.name {
		case "one in a container":
			l.gw.Give("docker2", container)
		case "on another NIC":
			container.Run("ip link delete docker2")
		}
		if n := copied(); n != c.copied {
			t.Errorf("%s: %d copies, want %d", c.name, n, c.copied)
		}
		said := told()
		if c.told == nil && said != "" {
			t.Errorf("%s: said %q", c.name, said)
		}
		for _, part := range c.told {
			if !strings.Contains(said, part) {
				t.Errorf("%s: %q does not say %q", c.name, said, part)
			}
		}
	}
	// A link of ours that takes copies is mended by the next pass.
	l.gw.Run("ip link delete docker4; ip link set eg001 type macvlan bcqueuelen 1000")
	if said := told(); said != "" {
		t.Errorf("said of a link of ours: %q", said)
	}
}

// BenchmarkBroadcast measures what one ARP request for a gateway IP, one for an
// address of nobody here, and one packet of an established flow cost, with the
// neighbour table and as it is without: links that take broadcast, no table.
func BenchmarkBroadcast(b *testing.B) {
	for _, links := range []int{1, 40, 400, 1000, 4000} {
		b.Run(fmt.Sprint(links), func(b *testing.B) {
			for b.Loop() {
				benchBroadcast(b, links)
			}
		})
	}
}

func benchBroadcast(b *testing.B, links int) {
	l := newLab(b, "iptables-nft")
	in := l.many(links)
	l.apply(plan.Diff(l.want(in), l.observe()))
	send := l.node1.Sender("eth0")
	asker := netip.MustParseAddr("192.168.99.21")
	asked := in.Tenants[links/2].GatewayIPs[0]
	mac, err := net.ParseMAC(plan.MAC(asked))
	if err != nil {
		b.Fatal(err)
	}
	ours := nettest.ARP(nettest.Broadcast(), nodeMAC, 1, asker, asked)
	foreign := nettest.ARP(nettest.Broadcast(), nodeMAC, 1, asker, netip.MustParseAddr("192.168.99.250"))
	packet := nettest.Datagram(mac, nodeMAC, "10.128.0.10", "203.0.113.10")
	cost := func(frame []byte, n int) float64 {
		best := 0.0
		for range 5 {
			before := busy(b)
			for range n {
				send(frame)
			}
			quiet(b)
			if us := float64(busy(b)-before) * 1e4 / float64(n); best == 0 || us < best {
				best = us
			}
		}
		return best
	}
	n := max(200, 20000/links)
	b.ReportMetric(cost(ours, 5*n), "us/request")
	b.ReportMetric(cost(foreign, 5*n), "us/foreign")
	with, without := alternating(l, func() {
		for range 2000 {
			send(packet)
		}
	})
	b.ReportMetric(with/2000, "ns/packet")
	b.ReportMetric(without/2000, "ns/packet-without")
	for _, t := range in.Tenants {
		l.gw.Run("ip link set " + plan.LinkName(t.Number) + " type macvlan bcqueuelen 1000")
	}
	b.ReportMetric(cost(ours, n/2), "us/request-without")
	b.ReportMetric(cost(foreign, n/2), "us/foreign-without")
}

// alternating returns the least time in ns that f took with the table, and
// without its rules, each of many times by turns.
func alternating(l *lab, f func()) (with, without float64) {
	rules := strings.Split(l.gw.Run("nft list table netdev egw-neigh | true; nft -s list chain netdev egw-neigh in | grep comment"), "\n")
	for range 60 {
		for on, best := range map[bool]*float64{true: &with, false: &without} {
			l.gw.Run("nft flush chain netdev egw-neigh in")
			for _, r := range rules[:2] {
				if on {
					l.gw.Run("nft 'add rule netdev egw-neigh in " + strings.TrimSpace(r) + "'")
				}
			}
			start := time.Now()
			f()
			if d := float64(time.Since(start)); *best == 0 || d < *best {
				*best = d
			}
		}
	}
	return with, without
}

// busy returns the ticks (10 ms) that all processors have worked since the start.
func busy(b *testing.B) int {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	sum := 0
	for i, f := range strings.Fields(strings.SplitN(string(stat), "\n", 2)[0])[1:9] {
		if n, err := strconv.Atoi(f); err == nil && i != 3 && i != 4 {
			sum += n
		}
	}
	return sum
}

// quiet waits until what was sent has been dealt with: copies of broadcast
// frames are made later, by a worker of the kernel.
func quiet(b *testing.B) {
	for range 10 { // others may be at work here as well
		before := busy(b)
		time.Sleep(50 * time.Millisecond)
		if busy(b)-before < 4 {
			return
		}
	}
}
