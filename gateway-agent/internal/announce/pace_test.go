// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
)

// fast runs an announcer over time that does not pass. Only its plan runs:
// nothing is sent.
type fast struct {
	a   *Announcer
	now time.Time
	// sent are the times since the start, by target and form.
	sent map[Target]map[form][]time.Duration
	all  map[form][]time.Duration
	// wakeups are how often the announcer has gone to sleep.
	wakeups int
}

func newFast(o Options) *fast {
	f := &fast{now: time.Now(), sent: map[Target]map[form][]time.Duration{}, all: map[form][]time.Duration{}}
	o = o.withDefaults()
	f.a = &Announcer{o: o, wake: make(chan struct{}, 1), kept: map[Target]bool{}, due: newSchedule(o, f.now)}
	return f
}

func (f *fast) run(d time.Duration) {
	begin := f.now
	var batch [batchSize]entry
	for end := f.now.Add(d); f.now.Before(end); {
		n, wait := f.a.collect(batch[:], f.now)
		at := f.now.Sub(begin)
		for _, e := range batch[:n] {
			if f.sent[e.target] == nil {
				f.sent[e.target] = map[form][]time.Duration{}
			}
			f.sent[e.target][e.form] = append(f.sent[e.target][e.form], at)
			f.all[e.form] = append(f.all[e.form], at)
		}
		if n < len(batch) {
			f.now = f.now.Add(wait)
			f.wakeups++
		}
	}
}

// busiest returns the most packets of a form within any second.
func (f *fast) busiest(of form) int {
	most := 0
	times := f.all[of]
	slices.Sort(times)
	for i, from := 0, 0; i < len(times); i++ {
		for times[i]-times[from] >= time.Second {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

func tenants(n int) []Target {
	var out []Target
	for i := range n {
		out = append(out, Target{"eg001", netip.AddrFrom4([4]byte{192, 168, byte(100 + i/250), byte(i % 250)})})
	}
	return out
}

// TestThousandNewTenants: each is announced once before any is announced again,
// soon, and an OVN node never has to learn more than it takes.
func TestThousandNewTenants(t *testing.T) {
	f := newFast(Options{})
	all := tenants(1000)
	f.a.Announce(all...)
	f.a.Keep(all)
	f.run(5 * time.Minute)
	var first, second []time.Duration
	for _, target := range all {
		requests, replies := f.sent[target][formRequest], f.sent[target][formReply]
		if len(replies) != 3 || len(requests) < 3 {
			t.Fatalf("%s: %d requests, %d replies", target.IP, len(requests), len(replies))
		}
		first, second = append(first, requests[0]), append(second, requests[1])
	}
	if slices.Max(first) > 10500*time.Millisecond || slices.Max(first) > slices.Min(second)+time.Second {
		t.Errorf("first announcements until %s, second ones from %s", slices.Max(first), slices.Min(second))
	}
	if n := f.busiest(formReply); n > 24 {
		t.Errorf("%d replies within a second", n)
	}
	t.Logf("announced once: %s; replies within a second: %d, requests: %d", slices.Max(first), f.busiest(formReply), f.busiest(formRequest))
}

// silence returns the longest time that any of the targets was not announced.
func (f *fast) silence(all []Target, of form, d time.Duration) (longest time.Duration) {
	for _, target := range all {
		before := time.Duration(0)
		for _, at := range append(f.sent[target][of], d) {
			longest, before = max(longest, at-before), at
		}
	}
	return longest
}

// TestRefreshOfManyTenants: at 4,000 none waits longer than a third of what
// switches allow, no node has to learn anything, and the machine is woken a few
// times a second for all of them.
func TestRefreshOfManyTenants(t *testing.T) {
	f := newFast(Options{})
	all := tenants(4000)
	f.a.Keep(all)
	f.run(10 * time.Minute)
	longest := f.silence(all, formRequest, 10*time.Minute)
	if longest > 100*time.Second+requestsRest || len(f.all[formReply]) > 0 {
		t.Errorf("a tenant was silent for %s; %d replies", longest, len(f.all[formReply]))
	}
	if most := f.busiest(formRequest); most > 60 {
		t.Errorf("%d requests within a second", most)
	}
	if f.wakeups > 2*600+10 {
		t.Errorf("woken %d times in 600 s", f.wakeups)
	}
	t.Logf("longest silence %s, %d requests within a second, %d wake-ups in 600 s", longest, f.busiest(formRequest), f.wakeups)
}

// TestRefreshOfManyIPv6Tenants: advertisements are what nodes may learn from,
// and keep their pace; switches do not forget meanwhile.
func TestRefreshOfManyIPv6Tenants(t *testing.T) {
	f := newFast(Options{})
	all := tenants(4000)
	for i := range all {
		all[i].IP = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 14: byte(i >> 8), 15: byte(i)})
	}
	f.a.Keep(all)
	f.run(30 * time.Minute)
	if longest := f.silence(all, formAdvert, 30*time.Minute); longest > 210*time.Second {
		t.Errorf("a tenant was silent for %s", longest)
	}
	if most := f.busiest(formAdvert); most > 24 {
		t.Errorf("%d advertisements within a second", most)
	}
	if f.wakeups > 5*1800+10 {
		t.Errorf("woken %d times in 1800 s", f.wakeups)
	}
}

// TestAnnouncersWakeTogether: what only refreshes wakes at times that all
// announcers of a process have in common.
func TestAnnouncersWakeTogether(t *testing.T) {
	for range 2 {
		f := newFast(Options{})
		f.a.Keep(tenants(100))
		for range 20 {
			f.run(time.Nanosecond) // until it sleeps
			if at := f.now.Round(0); !at.Equal(at.Truncate(requestsRest)) {
				t.Fatalf("woken at %s", at.Format("05.000000"))
			}
		}
		f.now = f.now.Add(time.Millisecond)
		f.a.Announce(target("192.168.99.13"))
		if n, wait := f.a.collect(make([]entry, 10), f.now.Add(time.Second)); n < 2 || wait > time.Second {
			t.Errorf("of a new address: %d frames, then a pause of %s", n, wait)
		}
	}
}

// TestSwitchKeepsTheMAC has a switch that forgets a MAC after two to four seconds. The
// tenant's link never sends, so without refreshes its traffic is flooded to
// everybody; with them, not one frame is. A tenant may have IPv6 alone, which at
// 4,000 tenants is announced every 200 s of the 300 that switches take to forget.
func TestSwitchKeepsTheMAC(t *testing.T) {
	for name, c := range map[string]switched{
		"IPv4": {300 * time.Millisecond, "192.168.99.13", unix.ETH_P_IP, "10.128.0.10", "203.0.113.10"},
		"IPv6": {1300 * time.Millisecond, "fd00:99::13", unix.ETH_P_IPV6, "fd01::10", "2001:db8::10"},
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); c.test(t) })
	}
}

// switched is what a node sends to a tenant's link, by way of a switch.
type switched struct {
	refresh     time.Duration
	gateway     string
	protocol    uint16 // of the frame
	pod, server string
}

func (c switched) test(t *testing.T) {
	sw, gw, node, other := nettest.New(t), nettest.New(t), nettest.New(t), nettest.New(t)
	sw.Run("ip link add br0 type bridge ageing_time 200 && ip link set br0 up")
	for nic, n := range map[string]*nettest.Net{"p1": gw, "p2": node, "p3": other} {
		sw.Wire(nic, n, "enp1s0")
		sw.Run("ip link set " + nic + " master br0")
	}
	pod, server, gateway := netip.MustParseAddr(c.pod), netip.MustParseAddr(c.server), netip.MustParseAddr(c.gateway)
	gw.Run(`ip link add link enp1s0 name eg001 address 02:00:c0:a8:63:0d type macvlan mode private
		ip link set eg001 addrgenmode none
		ip link set eg001 up
		ip address add ` + netip.PrefixFrom(gateway, gateway.BitLen()).String() + ` dev eg001 nodad`)
	flooded := other.Capture("enp1s0")
	send := node.Sender("enp1s0")
	datagram := nettest.UDP(netip.AddrPortFrom(pod, 5000), netip.AddrPortFrom(server, 7), nil)
	frame := slices.Concat([]byte{2, 0, 0xc0, 0xa8, 0x63, 0x0d}, []byte{2, 0xaa, 0, 0, 0, 0x21}, binary.BigEndian.AppendUint16(nil, c.protocol),
		nettest.IP(pod, server, unix.IPPROTO_UDP, datagram))
	// stalled is how long the machine let nobody here run: the announcer neither.
	traffic := func(d time.Duration) (n int, stalled time.Duration) {
		before, last := flooded.Sources()[pod], time.Now()
		for end := time.Now().Add(d); time.Now().Before(end); {
			stalled, last = max(stalled, time.Since(last)), time.Now()
			send(frame)
			time.Sleep(5 * time.Millisecond)
		}
		return flooded.Sources()[pod] - before, stalled
	}
	a := start(t, gw, Options{Interval: 300 * time.Millisecond, Refresh: c.refresh})
	a.Announce(target(c.gateway))
	a.Keep([]Target{target(c.gateway)})
	nettest.Wait(t, "the switch knows the MAC", func() bool {
		return strings.Contains(sw.Run("bridge fdb show br br0"), "02:00:c0:a8:63:0d dev p1")
	})
	n, stalled := traffic(5 * time.Second)
	for tries := 0; stalled > 500*time.Millisecond && tries < 5; tries++ {
		n, stalled = traffic(5 * time.Second)
	}
	if n > 0 {
		t.Errorf("%d frames of the tenant were flooded; this test was stalled for %s at most", n, stalled)
	}
	a.Keep(nil)
	for n, tries := 0, 0; n == 0; tries++ {
		if n, _ = traffic(100 * time.Millisecond); n == 0 && tries == 80 {
			t.Fatal("no frame is flooded without refreshes: this test shows nothing")
		}
	}
}
