// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// scanMark is in every packet of a scan.
const scanMark = 0x5ca77e12

// scanPackets are what a scanner sends from src to dst.
func (p plane) scanPackets(src, dst netip.Addr) [][]byte {
	mark := []byte{scanMark >> 24, scanMark >> 16 & 0xff, scanMark >> 8 & 0xff, scanMark & 0xff}
	from, to := netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, 7)
	var out [][]byte
	add := func(protocol byte, payload []byte) { out = append(out, nettest.IP(src, dst, protocol, payload)) }
	add(unix.IPPROTO_UDP, nettest.UDP(from, to, mark))
	add(unix.IPPROTO_UDP, nettest.UDP(netip.AddrPortFrom(src, 7), netip.AddrPortFrom(dst, 40000), mark))
	const syn, rst, ack = 2, 4, 16
	for _, flags := range []byte{syn, syn | ack, ack, rst} {
		add(unix.IPPROTO_TCP, nettest.TCP(from, to, flags, scanMark, 0))
	}
	add(unix.IPPROTO_GRE, append([]byte{0, 0, 8, 0}, mark...))
	about := nettest.IP(dst, src, unix.IPPROTO_UDP, nettest.UDP(to, from, mark))
	add(p.icmp, append(nettest.ICMPError(src, dst, about), mark...))
	add(p.icmp, nettest.ICMPEcho(src, dst, mark))
	out = append(out, nettest.Fragment(src, dst, unix.IPPROTO_UDP, 77, 8, false, bytes.Repeat(mark, 4)))
	return out
}

// opening are packets that open connections from src to dst.
func (p plane) opening(src, dst netip.Addr) [][]byte {
	from, to := netip.AddrPortFrom(src, 40001), netip.AddrPortFrom(dst, 7)
	return [][]byte{
		nettest.IP(src, dst, unix.IPPROTO_UDP, nettest.UDP(from, to, nil)),
		nettest.IP(src, dst, unix.IPPROTO_TCP, nettest.TCP(from, to, 2, scanMark, 0)),
		nettest.IP(src, dst, p.icmp, nettest.ICMPEcho(src, dst, nil)),
	}
}

// TestScanFromOutside: whatever a host outside sends, from its own address or
// one of the inside, reaches no pod, no node and no gateway IP, and is answered
// by none. Without the guards it does.
func TestScanFromOutside(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.echo(l.gw)
		p.echo(l.node1)
		p.serve(t, p.in)
		flow := p.dial(t, "udp", p.bluePod)
		if got, err := nettest.Ask(flow); got != p.blue {
			t.Fatal(got, err)
		}
		stranger := map[tenant.Family]string{tenant.IPv4: "10.129.0.5", tenant.IPv6: "fd01:0:0:9::5"}[p.family]
		sources := addrs(p.outside, stranger, p.redPod, p.node2, p.blueGateway, p.blue)
		targets := addrs(p.bluePod, p.redPod, p.node1, p.node2, p.blueGateway, p.redGateway)
		nodes := []*nettest.Recording{p.record(l.node1, "eth0"), p.record(l.node2, "eth0")}
		wire, raw := p.record(l.ext, "eth0"), l.ext.Raw(p.outside)
		scan := func() {
			for _, src := range sources {
				for _, dst := range targets {
					for _, packet := range p.scanPackets(src, dst) {
						raw.SendPacket(dst, packet)
					}
				}
			}
			// Another host than the one that the flow is with.
			local := netip.MustParseAddrPort(flow.LocalAddr().String())
			to := netip.AddrPortFrom(netip.MustParseAddr(p.blue), local.Port())
			raw.Send(to.Addr(), unix.IPPROTO_UDP, nettest.UDP(netip.MustParseAddrPort(at(p.outside, 7)), to, []byte{scanMark >> 24, scanMark >> 16 & 0xff, scanMark >> 8 & 0xff, scanMark & 0xff}))
		}
		arrived := func() int {
			n := 0
			for _, r := range nodes {
				for _, b := range r.Packets() {
					if bytes.Contains(b, []byte{scanMark >> 24, scanMark >> 16 & 0xff, scanMark >> 8 & 0xff, scanMark & 0xff}) {
						n++
					}
				}
			}
			return n
		}
		scan()
		if n := arrived(); n != 0 {
			t.Errorf("%d packets of the scan arrived at a node", n)
		}
		for _, b := range wire.Packets() {
			w := read(b)
			if slices.Contains(targets, w.src) || w.src.String() == p.blue && w.dport == 40000 {
				t.Errorf("%s answered %s (protocol %d, port %d)", w.src, w.dst, w.protocol, w.sport)
			}
		}
		if got, err := nettest.Ask(flow); got != p.blue {
			t.Errorf("the flow that was there: %q, %v", got, err)
		}
		p.clean(t)
		p.expect(t, p.redPod, p.red)

		l.gw.Run("nft delete table inet egw-guard; " + p.iptables + " -F EGW-FWD")
		scan()
		if arrived() == 0 {
			t.Error("nothing arrived without the guards: this test shows nothing")
		}
	})
}

// TestSpoofedPodSource: what comes from outside with the source of a pod is not
// passed on or answered, whatever it is for, nor told that it went too far: that would go to the
// pod. Without the guards it does.
func TestSpoofedPodSource(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.echo(l.gw)
		l.node2.Run("ip address add " + p.lan() + map[tenant.Family]string{tenant.IPv4: "/18 dev eth0", tenant.IPv6: "/64 dev eth0 nodad"}[p.family])
		p.serve(t, p.in)
		stranger := map[tenant.Family]string{tenant.IPv4: "10.129.0.5", tenant.IPv6: "fd01:0:0:9::5"}[p.family]
		spoofed := addrs(p.bluePod, p.redPod, stranger)
		targets := addrs(p.own, p.vm, p.blue, p.red, p.blueGateway, p.bluePod, p.node2, p.lan(), p.server)
		records := []*nettest.Recording{p.record(l.node1, "eth0"), p.record(l.node2, "eth0"), p.record(l.ext, "eth0")}
		raw := l.ext.Raw(p.outside)
		scan := func() {
			for _, src := range spoofed {
				for _, dst := range targets {
					for _, packet := range p.scanPackets(src, dst) {
						raw.SendPacket(dst, packet)
					}
					for _, packet := range p.opening(src, dst) {
						raw.SendPacket(dst, nettest.Hops(packet, 1))
					}
				}
			}
		}
		answered := func() (out []string) {
			for _, r := range records {
				for _, b := range r.Packets() {
					if w := read(b); slices.Contains(spoofed, w.dst) || slices.Contains(spoofed, w.src) {
						out = append(out, fmt.Sprintf("from %s to %s (protocol %d, port %d)", w.src, w.dst, w.protocol, w.sport))
					}
				}
			}
			return out
		}
		scan()
		for _, a := range answered() {
			t.Error(a)
		}
		rules := []string{p.rule("spoofed connection"), p.rule("spoofed pod source")}
		for _, r := range rules {
			if l.counters().Guards[r].Packets == 0 {
				t.Errorf("the rule %q dropped nothing", r)
			}
		}
		l.without(t, guardCase{rules: rules}, p.iptables)
		scan()
		if len(answered()) == 0 {
			t.Error("nothing was answered without the guards: this test shows nothing")
		}
	})
}

// TestDefaultRouteInside: with the VM's way out on the nodes' network, a
// tenant's packets leave neither there with the pod's address, nor outside.
func TestDefaultRouteInside(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		p.expect(t, p.bluePod, p.blue)
		long := p.dial(t, "udp", p.bluePod)
		if got, err := nettest.Ask(long); got != p.blue {
			t.Fatal(got, err)
		}
		nodes := []*nettest.Recording{p.record(l.node1, "eth0"), p.record(l.node2, "eth0")}
		l.gw.Run(p.ip() + " route replace default via " + p.node2)
		for _, network := range []string{"udp", "tcp"} {
			_ = l.node1.Seen(network, p.bluePod, at(p.server, 7))
			_ = l.node1.Seen(network, p.redPod, at(p.server, 7))
		}
		_, _ = nettest.Ask(long)
		inside := 0
		for _, r := range nodes {
			for _, b := range r.Packets() {
				w := read(b)
				if w.dst.String() != p.server {
					continue
				}
				inside++
				if w.src.String() != p.vm && w.src.String() != p.blue {
					t.Errorf("a packet to the server went inside with source %s", w.src)
				}
			}
		}
		if inside == 0 {
			t.Error("nothing went inside: this test shows nothing")
		}
		p.clean(t)
	})
}

// TestRightNeighbourUnderLoad: while traffic runs, nodes that ask for gateway
// IPs and for the VM's own address, again and again, and are asked by the VM,
// know each with the MAC that is right. Without the table that hands requests to
// the tenants' links they may find nobody, but not the VM's own MAC (arp_ignore).
func TestRightNeighbourUnderLoad(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		stop := l.trafficTo(at(p.server, 7), p.bluePod, p.redPod)
		defer stop()
		mac := strings.Fields(l.gw.Run("ip -o link show enp1s0 | sed 's/.*ether //'"))[0]
		want := map[string]string{p.vm: mac}
		for _, gateway := range []string{p.blueGateway, p.redGateway} {
			want[gateway] = plan.MAC(netip.MustParseAddr(gateway))
			if p.family == tenant.IPv6 { // the link has the MAC of the IPv4 gateway IP
				want[gateway] = plan.MAC(netip.MustParseAddr(map[string]string{p.blueGateway: "192.168.99.13", p.redGateway: "192.168.99.14"}[gateway]))
			}
		}
		flush := func() {
			// It gives up when traffic brings entries back faster than it ends: they
			// were asked for again then, which is what matters.
			l.node1.Run("ip neigh flush all || true")
			l.gw.Run("ip neigh flush all || true")
		}
		ask := func(n *nettest.Net, from, ip string) {
			c, err := n.Dial("udp", from, at(ip, 9)) // nobody answers; asking for the neighbour is what matters
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write([]byte("?"))
			c.Close()
		}
		for range 20 {
			flush()
			for ip := range want {
				ask(l.node1, p.node1, ip)
				if p.family == tenant.IPv4 { // the VM asks back, to answer as the gateway IP
					l.node1.Ping(p.node1, ip)
				}
			}
			ask(l.gw, p.vm, p.node1)
			for ip, mac := range want {
				var seen string
				nettest.Wait(t, "node1 to know "+ip, func() bool { seen = l.node1.Run("ip neigh show " + ip); return strings.Contains(seen, "lladdr") })
				if !strings.Contains(seen, mac) {
					t.Fatalf("node1 has %s at %q, want %s", ip, seen, mac)
				}
			}
		}
		stop()
		l.gw.Run("nft delete table netdev egw-neigh")
		flush()
		for _, ip := range []string{p.blueGateway, p.redGateway, p.vm} {
			ask(l.node1, p.node1, ip)
		}
		nettest.Wait(t, "node1 to know "+p.vm, func() bool { return strings.Contains(l.node1.Run("ip neigh show "+p.vm), mac) })
		for _, ip := range []string{p.blueGateway, p.redGateway} { // asked for before, so that an answer would be here
			if seen := l.node1.Run("ip neigh show " + ip); seen == "" || strings.Contains(seen, mac) {
				t.Errorf("without the table node1 has %s at %q, and %s is the VM's own MAC", ip, seen, mac)
			}
		}
	})
}

// TestNoDetectionDelay: on a machine that checks its addresses for duplicates,
// as they do by default, ours answer at once: a takeover does not wait.
func TestNoDetectionDelay(t *testing.T) {
	l := newLab(t, "iptables-nft")
	l.pods()
	p := l.plane("iptables-nft", tenant.IPv6)
	for _, where := range []string{"all", "default", "enp1s0", "enp7s0"} {
		l.gw.Sysctl("net/ipv6/conf/"+where+"/accept_dad", "1")
	}
	l.gw.Run("ip address add fd00:99::77/64 dev enp1s0") // one that is not ours shows that the kernel does check
	if out := l.gw.Run("ip -6 -o address show dev enp1s0"); !strings.Contains(out, "tentative") {
		t.Fatalf("the kernel does not check: this test shows nothing:\n%s", out)
	}
	l.serve(p.in)
	began := time.Now()
	for _, dev := range []string{"eg001", "eg002", "enp7s0"} {
		for line := range strings.Lines(l.gw.Run("ip -6 -o address show dev " + dev)) {
			if strings.Contains(line, "tentative") {
				t.Errorf("an address of ours is being checked: %s", line)
			}
		}
	}
	// The kernel's own check takes a second at least.
	for _, ip := range []string{p.blueGateway, p.redGateway} {
		c, err := l.node1.Dial("udp", p.node1, at(ip, 9))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("?"))
		c.Close()
	}
	for _, ip := range []string{p.blueGateway, p.redGateway} {
		nettest.Wait(t, "node1 to know "+ip, func() bool { return strings.Contains(l.node1.Run("ip neigh show "+ip), "lladdr") })
	}
	t.Logf("answered after %s", time.Since(began).Round(time.Millisecond))
}
