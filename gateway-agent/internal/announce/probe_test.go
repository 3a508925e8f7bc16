// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
)

// TestProbe asks for an address that the node has, for one that nobody has, and
// for one that the gateway itself has on a link.
func TestProbe(t *testing.T) {
	gw, node := pair(t)
	node.Run("ip address add 192.168.99.50/24 dev eth0")
	mac := macOf(node, "eth0")
	a := start(t, gw, Options{})
	targets := []Target{{"enp1s0", netip.MustParseAddr("192.168.99.50")}, {"enp1s0", netip.MustParseAddr("192.168.99.13")}}
	for i := range 120 { // more than are sent at once
		targets = append(targets, Target{"enp1s0", netip.AddrFrom4([4]byte{192, 168, 99, byte(100 + i)})})
	}
	probe := func() map[netip.Addr]Conflict { return probed(t, gw, a, targets) }
	found := probe()
	if c := found[netip.MustParseAddr("192.168.99.50")]; len(found) != 1 || c.MAC != mac {
		t.Errorf("found %v, want 192.168.99.50 at %s", found, mac)
	}
	// It claims nothing: the node has learned no address from it.
	if out := node.Run("ip neigh show"); strings.Contains(out, "192.168.99.1") || strings.Contains(out, "0.0.0.0") {
		t.Errorf("the node has learned from probes:\n%s", out)
	}
	// Another host probes for an address as well, at the same time.
	stop := again(node, arpProbe(net.HardwareAddr{2, 0, 0, 0, 0, 0x66}, netip.MustParseAddr("192.168.99.150")))
	found = probe()
	stop()
	if c := found[netip.MustParseAddr("192.168.99.150")]; c.MAC != "02:00:00:00:00:66" || len(found) != 2 {
		t.Errorf("while another host probes: %v", found)
	}
	node.Run("ip address del 192.168.99.50/24 dev eth0")
	if found := probe(); len(found) != 0 {
		t.Errorf("found %v after the address became free", found)
	}
}

// probed asks for all targets at once, and returns who has which.
func probed(t *testing.T, gw *nettest.Net, a *Announcer, targets []Target) map[netip.Addr]Conflict {
	t.Helper()
	var found map[netip.Addr]Conflict
	var err error
	begin := time.Now()
	gw.Do(func() { found, err = a.Probe(t.Context(), targets, 250*time.Millisecond) })
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("%d probes took %s", len(targets), d)
	}
	return found
}

// TestProbeAsksAllNetworksAtOnce: the pace of one NIC keeps no other waiting.
func TestProbeAsksAllNetworksAtOnce(t *testing.T) {
	const each = 500 // takes 100 ms
	gw, node := pair(t)
	gw.Wire("enp7s0", node, "eth1")
	a := start(t, gw, Options{})
	var targets []Target
	for i, dev := range []string{"enp1s0", "enp7s0"} {
		for n := range each {
			targets = append(targets, Target{dev, netip.AddrFrom4([4]byte{10, byte(i), byte(n >> 8), byte(n)})})
		}
	}
	var heard *os.File
	var err error
	node.Do(func() { heard, err = packetSocket(etherARP, nil) })
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	raw, err := heard.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// All of them, however long the machine does not let us read.
	if ctrl := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) }); ctrl != nil || err != nil {
		t.Fatal(ctrl, err)
	}
	var order []byte // of the networks that were asked
	done := make(chan struct{})
	go func() {
		defer close(done)
		receive(raw, func(b []byte, _ unix.Sockaddr) {
			if len(b) >= arpLen && b[24] == 10 {
				order = append(order, b[25])
			}
			if len(order) == len(targets) {
				heard.Close()
			}
		})
	}()
	gw.Do(func() { _, err = a.Probe(t.Context(), targets, time.Millisecond) })
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("not all probes arrived")
	}
	if first, last := bytes.IndexByte(order, 1), bytes.LastIndexByte(order, 0); first > last {
		t.Errorf("the second network was asked after the first: probe %d, after %d", first, last)
	}
}

// again has n send a frame every 5 ms until stop is called.
func again(n *nettest.Net, frame []byte) (stop func()) {
	send, quit, done := n.Sender("eth0"), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
				send(frame)
			}
		}
	}()
	return func() { close(quit); <-done }
}

func macOf(n *nettest.Net, nic string) string {
	return strings.Fields(n.Run("ip -o link show " + nic + " | sed 's/.*ether //'"))[0]
}

// TestProbeIPv6: the same by duplicate address detection. The node checks for an
// address itself as well, which is a conflict too.
func TestProbeIPv6(t *testing.T) {
	gw, node := pair(t)
	node.Run("ip address add fd00:99::50/64 dev eth0 nodad")
	a := start(t, gw, Options{})
	held, wanted := netip.MustParseAddr("fd00:99::50"), netip.MustParseAddr("fd00:99::60")
	targets := []Target{{"enp1s0", held}, {"enp1s0", wanted}, {"enp1s0", netip.MustParseAddr("fd00:99::13")}}
	for i := range 120 {
		targets = append(targets, Target{"enp1s0", netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x99, 14: 1, 15: byte(i)})})
	}
	seen := node.RecordIPv6("eth0")
	probe := func() map[netip.Addr]Conflict { return probed(t, gw, a, targets) }
	nettest.Wait(t, "the node has its address", func() bool { return len(probe()) == 1 })
	if c := probe()[held]; c.MAC != macOf(node, "eth0") {
		t.Errorf("%s is at %q, want %s", held, c.MAC, macOf(node, "eth0"))
	}
	// What was asked, was asked as RFC 4862 wants it.
	asked := 0
	for _, p := range seen.Packets() {
		m, ok := discoveryPacket(p, nil)
		if !ok || m.target != held || !m.solicits {
			continue
		}
		asked++
		if group := netip.AddrFrom16([16]byte(p[24:40])); !m.source.IsUnspecified() || m.mac != nil || group.String() != "ff02::1:ff00:50" {
			t.Errorf("asked by %+v, to %s", m, group)
		}
	}
	if to := net.HardwareAddr(detection(make([]byte, 6), held)[:6]).String(); to != "33:33:ff:00:00:50" {
		t.Errorf("asked at %s", to)
	}
	if asked == 0 {
		t.Error("the node has not seen a probe")
	}
	if out := node.Run("ip -6 neigh show"); strings.Contains(out, "fd00:99::") {
		t.Errorf("the node has learned from probes:\n%s", out)
	}

	// Another host checks whether it may have an address, at the same time.
	stop := again(node, detection(net.HardwareAddr{2, 0, 0, 0, 0, 0x66}, wanted))
	found := probe()
	stop()
	if c := found[wanted]; c.MAC != "02:00:00:00:00:66" || len(found) != 2 {
		t.Errorf("while another host asks: %v", found)
	}
	node.Run("ip address del fd00:99::50/64 dev eth0")
	if found := probe(); len(found) != 0 {
		t.Errorf("found %v after the address became free", found)
	}
	// No group is left behind.
	if out := gw.Run("ip maddress show dev enp1s0"); strings.Contains(out, "33:33:ff:00:00:60") {
		t.Errorf("still a member:\n%s", out)
	}
}

// asks is a solicitation by a host that says it has source.
func asks(mac net.HardwareAddr, source, target netip.Addr) []byte {
	group, to := solicitedNode(target)
	body := append(append([]byte{icmp6NS, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...), 1, 1)
	return icmp6Frame(to, mac, source, group, append(body, mac...))
}

// TestConflictsIPv6 has a node claim the tenant's gateway IP, by an advertisement
// and by asking with it, and has it do what claims nothing.
func TestConflictsIPv6(t *testing.T) {
	gw, node := pair(t)
	a := start(t, gw, Options{})
	a.Keep([]Target{target("fd00:99::13")})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var conflicts <-chan Conflict
	var err error
	gw.Do(func() { conflicts, err = Conflicts(ctx, a.At, "enp1s0") })
	if err != nil {
		t.Fatal(err)
	}
	send := node.Sender("eth0")
	thief, ours := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}, netip.MustParseAddr("fd00:99::13")
	allNodes := func(frame []byte) []byte { // every machine takes that in
		copy(frame, []byte{0x33, 0x33, 0, 0, 0, 1})
		copy(frame[38:54], netip.MustParseAddr("ff02::1").AsSlice())
		copy(frame[56:58], []byte{0, 0})
		binary.BigEndian.PutUint16(frame[56:], icmp6Checksum(netip.AddrFrom16([16]byte(frame[22:38])), netip.MustParseAddr("ff02::1"), frame[54:]))
		return frame
	}
	other := net.HardwareAddr{2, 0, 0, 0, 0, 0x67}
	far := neighbourAdvertisement(other, ours)
	far[21] = 254 // came over a router
	send(far)
	send(neighbourAdvertisement(net.HardwareAddr{2, 0, 0xc0, 0xa8, 0x63, 0x0d}, ours)) // the link's own MAC: another VM with the same tenant
	send(neighbourAdvertisement(other, netip.MustParseAddr("fd00:99::77")))            // of its own
	send(allNodes(detection(other, ours)))                                             // asks whether it may
	claims := []net.HardwareAddr{thief, {2, 0, 0, 0, 0, 0x68}}
	send(neighbourAdvertisement(claims[0], ours))
	send(allNodes(asks(claims[1], ours, netip.MustParseAddr("fd00:99::88"))))
	// Packets arrive in order, some of them at the NIC and at the link.
	seen := map[string]bool{}
	nettest.Wait(t, "the claims are reported", func() bool {
		select {
		case c := <-conflicts:
			if c.IP != ours {
				t.Errorf("a conflict about %s", c.IP)
			}
			seen[c.MAC] = true
		default:
		}
		return seen[claims[1].String()]
	})
	if len(seen) != 2 || !seen[claims[0].String()] {
		t.Errorf("claimed by %v, want %v", seen, claims)
	}
	cancel()
	for range conflicts {
	}
}

// TestConflicts has a node claim the tenant's gateway IP.
func TestConflicts(t *testing.T) {
	gw, node := pair(t)
	a := start(t, gw, Options{})
	a.Keep([]Target{target("192.168.99.13")})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var conflicts <-chan Conflict
	var err error
	gw.Do(func() { conflicts, err = Conflicts(ctx, a.At, "enp1s0") })
	if err != nil {
		t.Fatal(err)
	}
	node.Ping("192.168.99.21", "192.168.99.13") // its ARP claims nothing of ours
	if len(conflicts) > 0 {
		t.Errorf("%v without a conflict", <-conflicts)
	}
	node.Run("ip link add link eth0 name thief address 02:00:00:00:00:66 type macvlan mode bridge; ip link set thief up")
	thief := node.Sender("thief")
	thief(gratuitousARP([]byte{2, 0, 0, 0, 0, 0x66}, netip.MustParseAddr("192.168.99.13"), arpRequest))
	select {
	case c := <-conflicts:
		if want := (Conflict{netip.MustParseAddr("192.168.99.13"), "02:00:00:00:00:66"}); c != want {
			t.Errorf("%v, want %v", c, want)
		}
	case <-time.After(3 * time.Second):
		t.Fatal("not seen")
	}
	cancel()
	for range conflicts {
	}
}
