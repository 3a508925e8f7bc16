// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
)

// pair is a gateway with a tenant link on its internal NIC, and a node.
func pair(t *testing.T) (gw, node *nettest.Net) {
	t.Helper()
	gw, node = nettest.New(t), nettest.New(t)
	gw.Wire("enp1s0", node, "eth0")
	gw.Run(`ip address add 192.168.99.12/24 dev enp1s0
		sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.default.rp_filter=2
		ip link add link enp1s0 name eg001 address 02:00:c0:a8:63:0d type macvlan mode private
		ip link set eg001 up
		ip address add 192.168.99.13/32 dev eg001
		ip -6 address add fd00:99::13/128 dev eg001 nodad`)
	node.Run("ip address add 192.168.99.21/24 dev eth0; ip -6 address add fd00:99::21/64 dev eth0 nodad")
	return gw, node
}

func start(t *testing.T, gw *nettest.Net, o Options) *Announcer {
	t.Helper()
	var a *Announcer
	var err error
	gw.Do(func() { a, err = New(o) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

func target(ip string) Target { return Target{Dev: "eg001", IP: netip.MustParseAddr(ip)} }

// TestAnnouncementCorrectsNeighbours gives a node wrong entries.
func TestAnnouncementCorrectsNeighbours(t *testing.T) {
	gw, node := pair(t)
	a := start(t, gw, Options{})
	for _, ip := range []string{"192.168.99.13", "fd00:99::13"} {
		node.Run("ip neigh replace " + ip + " lladdr 02:00:00:00:00:99 dev eth0 nud stale")
		a.Announce(target(ip))
		nettest.Wait(t, ip+" points to the tenant's link", func() bool {
			return strings.Contains(node.Run("ip neigh show "+ip), "02:00:c0:a8:63:0d")
		})
	}
}

func TestPaceAndForms(t *testing.T) {
	gw, node := pair(t)
	seen, err := watchAll(t, node)
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, gw, Options{PerSecond: 10, Requests: 100, Burst: 2, Repeat: 2, Interval: 100 * time.Millisecond})
	begin := time.Now()
	a.Announce(target("192.168.99.13"), target("192.168.99.14"), target("192.168.99.15"))
	ops := map[byte]int{}
	for range 12 {
		select {
		case op := <-seen:
			ops[op]++
		case <-time.After(3 * time.Second):
			t.Fatalf("packets so far: %v", ops)
		}
	}
	// 6 replies, 2 of them at once, the others 100 ms apart; requests do not wait for them.
	if d := time.Since(begin); d < 380*time.Millisecond {
		t.Errorf("6 replies in %s: faster than 10 a second", d)
	}
	if ops[arpRequest] != 6 || ops[arpReply] != 6 {
		t.Errorf("forms: %v", ops)
	}
	select {
	case op := <-seen:
		t.Errorf("one more packet (%d): an address that is not kept was refreshed", op)
	case <-time.After(300 * time.Millisecond):
	}
}

func TestRefreshAndForget(t *testing.T) {
	gw, node := pair(t)
	seen, err := watchAll(t, node)
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, gw, Options{Requests: 1000, Refresh: 20 * time.Millisecond})
	a.Keep([]Target{target("192.168.99.13")})
	for range 6 {
		select {
		case <-seen:
		case <-time.After(3 * time.Second):
			t.Fatal("no refresh")
		}
	}
	a.Keep(nil)
	for drained := false; !drained; {
		select {
		case <-seen:
		case <-time.After(100 * time.Millisecond):
			drained = true
		}
	}
	select {
	case <-seen:
		t.Error("an address that is no longer kept was announced")
	case <-time.After(100 * time.Millisecond):
	}
	// A link that is gone does not end the announcer.
	a.Announce(Target{Dev: "eg002", IP: netip.MustParseAddr("192.168.99.14")}, target("192.168.99.13"))
	select {
	case <-seen:
	case <-time.After(3 * time.Second):
		t.Error("nothing after a failure")
	}
}

// TestOneOfMany: what can not be sent does not hold up what is sent with it.
func TestOneOfMany(t *testing.T) {
	gw, node := pair(t)
	gw.Run("ip link add link enp1s0 name eg002 type macvlan mode private") // and stays down
	seen, err := watchAll(t, node)
	if err != nil {
		t.Fatal(err)
	}
	var s *sender
	gw.Do(func() {
		fd, e := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		s, err = newSender(fd), e
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s.fd)
	var batch []entry
	for i := range batchSize {
		// The third has no link, the others of each four two that are up, and one that is down.
		dev := []string{"eg001", "eg002", "eg003", "enp1s0"}[i%4]
		batch = append(batch, entry{target: Target{dev, netip.AddrFrom4([4]byte{192, 168, 99, byte(100 + i)})}})
	}
	failed := map[string]int{}
	gw.Do(func() { s.send(batch, func(t Target, _ error) { failed[t.Dev]++ }) })
	if len(failed) != 2 || failed["eg002"] != batchSize/4 || failed["eg003"] != batchSize/4 {
		t.Errorf("failed: %v", failed)
	}
	for range batchSize / 2 {
		select {
		case <-seen:
		case <-time.After(3 * time.Second):
			t.Fatal("a frame is missing")
		}
	}
}

// TestRefreshIPv6: unsolicited neighbour advertisements are repeated too, from
// the tenant's MAC, so that no switch forgets it.
func TestRefreshIPv6(t *testing.T) {
	gw, node := pair(t)
	a := start(t, gw, Options{PerSecond: 1000, Refresh: 20 * time.Millisecond})
	a.Keep([]Target{target("fd00:99::13")})
	for range 3 {
		// Each time the node knows a wrong address, which only an announcement
		// corrects: nobody answers there.
		node.Run("ip neigh replace fd00:99::13 lladdr 02:00:00:00:00:99 dev eth0 nud stale")
		nettest.Wait(t, "a refresh corrects the node", func() bool {
			return strings.Contains(node.Run("ip neigh show fd00:99::13"), "02:00:c0:a8:63:0d")
		})
	}
}

// watchAll reports the form of each gratuitous ARP packet that a node receives.
func watchAll(t *testing.T, n *nettest.Net) (<-chan byte, error) {
	out := make(chan byte, 1000)
	var err error
	n.Do(func() {
		file, e := packetSocket(etherARP, nil)
		if err = e; e != nil {
			return
		}
		t.Cleanup(func() { file.Close() })
		raw, e := file.SyscallConn()
		if err = e; e != nil {
			return
		}
		go receive(raw, func(b []byte, _ unix.Sockaddr) {
			if len(b) >= arpLen && string(b[14:18]) == string(b[24:28]) {
				out <- b[7]
			}
		})
	})
	return out, err
}

func TestWatch(t *testing.T) {
	const mark = 0x65677701
	gw, node := pair(t)
	// As the agent has the kernel hand over requests.
	gw.Run(`nft 'add table netdev t; add chain netdev t in { type filter hook ingress device enp1s0 priority 0; }'
		nft add rule netdev t in arp operation request ether daddr ff:ff:ff:ff:ff:ff arp daddr ip 192.168.99.13 ether daddr set 02:00:c0:a8:63:0d meta mark set 0x65677701
		nft add rule netdev t in icmpv6 type nd-neighbor-solicit ether daddr '&' ff:ff:00:00:00:00 == 33:33:00:00:00:00 ether daddr set 02:00:c0:a8:63:0d meta mark set 0x65677701`)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var events <-chan Resolved
	var err error
	gw.Do(func() { events, err = Watch(ctx, mark) })
	if err != nil {
		t.Fatal(err)
	}
	a := start(t, gw, Options{})
	a.Announce(target("192.168.99.13")) // no request of a node
	a.Announce(target("fd00:99::13"))
	for _, asks := range [][2]string{{"192.168.99.21", "192.168.99.13"}, {"fd00:99::21", "fd00:99::13"}} {
		// Nobody listens there; sending is what makes the node ask.
		if c, err := node.Dial("udp", asks[0], netip.AddrPortFrom(netip.MustParseAddr(asks[1]), 9).String()); err != nil {
			t.Fatal(err)
		} else if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-events:
			if want := (Resolved{netip.MustParseAddr(asks[0]), netip.MustParseAddr(asks[1])}); e != want {
				t.Errorf("%v, want %v", e, want)
			}
		case <-time.After(3 * time.Second):
			t.Fatalf("no event: %v", asks)
		}
	}
	// A probe of a known entry, which goes to the link's MAC, is no event.
	node.Run("ip neigh change 192.168.99.13 dev eth0 nud probe")
	node.Ping("192.168.99.21", "192.168.99.13")
	nettest.Wait(t, "the probe is answered", func() bool {
		return strings.Contains(node.Run("ip neigh show 192.168.99.13"), "REACHABLE")
	})
	if len(events) > 0 {
		t.Errorf("%d events for a probe", len(events))
	}
	cancel()
	nettest.Wait(t, "the channel is closed", func() bool {
		select {
		case _, open := <-events:
			return !open
		default:
			return false
		}
	})
}

// FuzzDiscovery: whatever a host sends, a claim names an address and a MAC, and
// a node that asks has an address of its own.
func FuzzDiscovery(f *testing.F) {
	mac, ip := net.HardwareAddr{2, 0, 0, 0, 0, 1}, netip.MustParseAddr("fd00:99::13")
	f.Add(detection(mac, ip)[14:])
	f.Add(neighbourAdvertisement(mac, ip)[14:])
	f.Add(asks(mac, netip.MustParseAddr("fe80::1"), ip)[14:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > ipv6HeaderLen+4 { // else hardly any input has the right checksum
			body := b[ipv6HeaderLen:]
			binary.BigEndian.PutUint16(b[4:], uint16(len(body)))
			copy(body[2:4], []byte{0, 0})
			binary.BigEndian.PutUint16(body[2:], icmp6Checksum(netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), body))
		}
		if r, ok := solicitation(b); ok && (r.Node.IsUnspecified() || r.Target == r.Node) {
			t.Error(r)
		}
		m, ok := discoveryPacket(b, mac)
		if !ok {
			return
		}
		claimed, of, claims := m.claims()
		if claims && (len(claimed) != 6 || !of.Is6() || of.IsUnspecified()) {
			t.Errorf("%v claims %v", claimed, of)
		}
		if answered, about, ok := m.answers(); claims && (!ok || about != of || answered.String() != claimed.String()) {
			t.Errorf("a claim of %v is no answer: %v %v", of, about, ok)
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add(gratuitousARP(make([]byte, 6), netip.MustParseAddr("192.0.2.1"), arpRequest)[14:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := request(b); ok && (!r.Node.IsValid() || !r.Target.IsValid()) {
			t.Error(r)
		}
	})
}
