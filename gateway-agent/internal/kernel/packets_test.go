// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"bytes"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
)

// bluePod is a pod of blue on node1.
const bluePod = "10.128.0.10"

// noPod checks that no packet holds a pod's address anywhere: in its header, or
// in that of a packet that an ICMP error is about.
func (p plane) noPod(t *testing.T, r *nettest.Recording) {
	t.Helper()
	for _, packet := range r.Packets() {
		for _, pod := range addrs(p.bluePod, p.redPod) {
			if bytes.Contains(packet, pod.AsSlice()) {
				t.Errorf("a packet that left holds the pod's address %s: %x", pod, packet)
			}
		}
	}
}

// refused returns how many packets were refused so far, by reason.
func (l *lab) refused() map[string]int {
	l.t.Helper()
	c, out := l.counters(), make(map[string]int)
	for reason, n := range c.Refused {
		out[reason] = int(n.Packets)
	}
	for guard, n := range c.Guards {
		out["guard: "+guard] = int(n.Packets)
	}
	return out
}

// TestRelated: ICMP errors are translated in both directions, with the
// addresses of the packet that they are about.
func TestRelated(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		out, in := p.record(l.ext, "eth0"), p.record(l.node1, "eth0")

		// To the pod: nobody listens at the server's port 9.
		c, err := l.node1.Dial("udp", p.bluePod, at(p.server, 9))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := nettest.Ask(c); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("the pod should be told that nobody listens: %q, %v", got, err)
		}
		if !soon(func() bool {
			return countErrors(in.Packets(), func(outer, inner onWire) bool {
				return outer.dst.String() == p.bluePod && inner.src.String() == p.bluePod
			}) > 0
		}) {
			t.Error("no ICMP error for the pod's address arrived at the node")
		}

		// From the pod: nobody listens at its port 4444, to which the server answers.
		raw := l.node1.Raw(p.bluePod)
		raw.UDP(4444, netip.MustParseAddrPort(at(p.server, 7)))
		left := func() int {
			return countErrors(out.Packets(), func(outer, inner onWire) bool {
				return outer.src.String() == p.blue && inner.dst.String() == p.blue
			})
		}
		if !soon(func() bool { return left() > 0 }) {
			t.Error("the pod's ICMP error did not leave with the tenant's address")
		}

		// Errors that belong to nothing, or do not fit their connection.
		to, pod := netip.MustParseAddr(p.server), netip.MustParseAddr(p.bluePod)
		about := func(src, dst string, sport, dport uint16) []byte {
			from, to := netip.MustParseAddrPort(at(src, sport)), netip.MustParseAddrPort(at(dst, dport))
			return nettest.IP(from.Addr(), to.Addr(), unix.IPPROTO_UDP, nettest.UDP(from, to, nil))
		}
		before, had := l.refused()["invalid"], left()
		for _, packet := range [][]byte{
			about(p.server, p.bluePod, 7, 5555),                                        // unknown
			about(p.bluePod, p.server, 4444, 7),                                        // the wrong direction
			about(p.server, p.redPod, 7, 1),                                            // of another tenant's pod
			about(p.server, p.blue, 7, 4444),                                           // translated already
			about(p.silent, p.bluePod, 7, 4444)[:len(about(p.silent, p.blue, 7, 1))-4], // cut short
		} {
			raw.Send(to, p.icmp, nettest.ICMPError(pod, to, packet))
		}
		if !soon(func() bool { return l.refused()["invalid"]-before >= 4 }) {
			t.Errorf("%d of the ICMP errors that fit nothing were refused; left: %d", l.refused()["invalid"]-before, left()-had)
		}
		p.noPod(t, out)
		p.clean(t)
	})
}

// countErrors counts the ICMP errors, of type "unreachable", that match picks.
func countErrors(packets [][]byte, match func(outer, inner onWire) bool) int {
	n := 0
	for _, b := range packets {
		header, unreachable := 20, byte(3)
		if b[0]>>4 == 6 {
			header, unreachable = 40, 1
		}
		outer := read(b)
		if (outer.protocol == unix.IPPROTO_ICMP || outer.protocol == unix.IPPROTO_ICMPV6) && len(b) >= 2*header+8 &&
			b[header] == unreachable && match(outer, read(b[header+8:])) {
			n++
		}
	}
	return n
}

// soon looks up to 50 times for what happens on its own; each look takes its
// time, some ten milliseconds.
func soon(done func() bool) bool {
	for range 50 {
		if done() {
			return true
		}
	}
	return false
}

// TestInvalid: what connection tracking can make nothing of is not translated,
// and must not leave.
func TestInvalid(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		out := p.record(l.ext, "eth0")
		conn := p.dial(t, "tcp", p.bluePod)
		if got, err := nettest.Ask(conn); got != p.blue {
			t.Fatal(got, err)
		}
		local := netip.MustParseAddrPort(conn.LocalAddr().String())
		to, raw := netip.MustParseAddrPort(at(p.server, 7)), l.node1.Raw(p.bluePod)
		send := func() {
			unknown := netip.AddrPortFrom(local.Addr(), 1234)
			const fin, syn, rst, ack = 1, 2, 4, 16
			for _, s := range [][]byte{
				nettest.TCP(unknown, to, rst, 1, 0),
				nettest.TCP(unknown, to, rst|ack, 1, 1),
				nettest.TCP(unknown, to, syn|ack, 1, 1),
				nettest.TCP(unknown, to, syn|fin, 1, 0),             // no such thing
				nettest.TCP(local, to, ack, 0x40000000, 0x40000000), // far out of the window
				nettest.TCP(local, to, rst, 0x70000000, 0),          // the same
				nettest.TCP(local, to, syn|fin|rst|ack, 7, 7),       // no such thing, of a known connection
				nettest.TCP(unknown, to, rst, 1, 0)[:12],            // cut short
			} {
				raw.Send(to.Addr(), unix.IPPROTO_TCP, s)
			}
		}
		before := l.refused()["invalid"]
		send()
		// Those two that are out of the window may, depending on where it begins,
		// pass for old repetitions: they are translated then.
		if !soon(func() bool { return l.refused()["invalid"]-before >= 6 }) {
			t.Errorf("%d of 8 packets were refused as invalid: %v", l.refused()["invalid"]-before, l.refused())
		}
		if got, err := nettest.Ask(conn); got != p.blue {
			t.Errorf("the connection should not notice: %q, %v", got, err)
		}
		p.noPod(t, out)

		// The exit guard catches them where the forward guard is gone.
		l.gw.Run(p.iptables + " -F EGW-OUT; " + p.iptables + " -A EGW-OUT -j ACCEPT")
		send()
		caught := func() int {
			r := l.refused()
			return r["guard: "+p.rule("pod source")] + r["guard: tenant link without mark"] + r["guard: tenant link untracked"]
		}
		if !soon(func() bool { return caught() >= 5 }) {
			t.Errorf("the exit guard dropped %d packets: %v", caught(), l.refused())
		}
		p.noPod(t, out)
		p.clean(t)
		// And both are needed.
		l.gw.Run("nft delete table inet egw-guard")
		send()
		if !soon(func() bool { return p.leaked() > 0 }) {
			t.Error("nothing leaked without the guards: this test shows nothing")
		}
	})
}

// TestFragments: each part of a datagram leaves translated, in whatever order
// the parts come; a part without its first one does not leave.
func TestFragments(t *testing.T) {
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		out := p.record(l.ext, "eth0")
		c := p.dial(t, "udp", p.bluePod)
		if _, err := c.Write(bytes.Repeat([]byte("x"), 4000)); err != nil {
			t.Fatal(err)
		}
		if got, err := nettest.Ask(c); got != p.blue {
			t.Errorf("a large datagram: %q, %v", got, err)
		}
		count := func() (first, later int) {
			for _, b := range out.Packets() {
				w := read(b)
				switch {
				case w.src.String() != p.blue:
				case w.offset > 0:
					later++
				case w.more:
					first++
				}
			}
			return first, later
		}
		if first, later := count(); first != 1 || later != 2 { // the answer has come, so they have left
			t.Errorf("%d first and %d later fragments left", first, later)
		}

		to, pod := netip.MustParseAddr(p.server), netip.MustParseAddr(p.bluePod)
		raw := l.node1.Raw(p.bluePod)
		payload := nettest.UDP(netip.AddrPortFrom(pod, 5000), netip.AddrPortFrom(to, 7), bytes.Repeat([]byte("y"), 1592))
		part := func(id uint16, from, end int, more bool) []byte {
			return nettest.Fragment(pod, to, unix.IPPROTO_UDP, id, from, more, payload[from:end])
		}
		raw.SendPacket(to, part(1, 800, 1600, false)) // the end before the beginning
		raw.SendPacket(to, part(1, 0, 800, true))
		if !soon(func() bool { first, later := count(); return first == 2 && later == 3 }) {
			first, later := count()
			t.Errorf("out of order: %d first and %d later fragments left", first, later)
		}
		raw.SendPacket(to, part(2, 800, 1600, false)) // an end without a beginning
		raw.SendPacket(to, part(3, 0, 800, true))     // and a beginning without an end
		if first, later := count(); first != 2 || later != 3 {
			t.Errorf("parts of a datagram left: %d first and %d later fragments", first, later)
		}
		p.noPod(t, out)
		p.clean(t)
	})
}

// TestInsertRace: two packets of one new flow at once, from two processors.
// One of them finds that the other has begun the connection; neither leaves
// untranslated.
func TestInsertRace(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("needs two processors: a race takes two")
	}
	eachFamily(t, func(t *testing.T, l *lab, p plane) {
		p.serve(t, p.in)
		to := netip.MustParseAddrPort(at(p.silent, 53))
		senders := [2]*nettest.Raw{l.node1.Raw(p.bluePod), l.node1.Raw(p.bluePod)}
		races, sent := 0, 0
		for deadline := time.Now().Add(20 * time.Second); races < 20 && time.Now().Before(deadline) && sent < 60000; {
			const batch = 5000
			var turn [2]atomic.Int64
			var wg sync.WaitGroup
			for i, s := range senders {
				wg.Go(func() {
					for n := range int64(batch) {
						turn[i].Store(n + 1)
						for turn[1-i].Load() < n+1 { // both at once
							runtime.Gosched()
						}
						s.UDP(uint16(1024+sent+int(n)), to)
					}
				})
			}
			wg.Wait()
			sent += batch
			races = l.races()
		}
		t.Logf("%d flows, %d races", sent, races)
		if races == 0 {
			t.Error("no race took place: this test shows nothing")
		}
		p.clean(t)
		if n := p.sources()[netip.MustParseAddr(p.blue)]; n < sent {
			t.Logf("%d packets of %d flows left", n, sent)
		}
	})
}

// races returns how many packets found that another one of their flow was
// faster: those that went on with its connection, and those that were dropped.
func (l *lab) races() int {
	l.t.Helper()
	sum := 0
	for word := range strings.FieldsSeq(l.gw.Run("conntrack -S")) {
		name, value, _ := strings.Cut(word, "=")
		if name == "clash_resolve" || name == "insert_failed" {
			n, err := strconv.Atoi(value)
			if err != nil {
				l.t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}
