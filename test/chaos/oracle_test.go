// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
)

var zero = time.Unix(1_800_000_000, 0)

func second(s float64) time.Time { return zero.Add(time.Duration(s * float64(time.Second))) }

func gives(at float64, tenant string, generation int64, list ...string) allocation {
	return allocation{second(at), tenant, "uid-" + tenant, generation, addrs(list)}
}

func programs(at float64, tenant string, generation int64, list ...string) change {
	return change{allocation: gives(at, tenant, generation, list...)}
}

func removes(at float64, tenant string) change {
	return change{gives(at, tenant, 1), true}
}

const a, b = "192.168.20.1", "192.168.20.2"

func TestWhoMayUseAnAddress(t *testing.T) {
	h := compile(
		[]allocation{gives(10, "x", 1, a), gives(20, "x", 2, b), gives(30, "y", 1, a), gives(60, "x", 3, a)},
		[]change{
			programs(11, "x", 1, a), programs(22, "x", 2, b), programs(32, "y", 1, a),
			programs(40, "x", 2, b), // told again after a crash
			removes(50, "y"), programs(61, "x", 3, a),
		})
	for _, c := range []struct {
		tenant, addr string
		at           float64
		want         bool
	}{
		{"x", a, 8, false}, {"x", a, 9.5, true}, {"x", a, 15, true},
		{"x", a, 21.9, true}, // the gateway has not taken it away yet
		{"x", a, 22.1, false}, {"x", b, 25, true}, {"x", a, 33, false},
		{"y", a, 25, false}, {"y", a, 31, true}, {"y", a, 49.9, true}, {"y", a, 50.1, false},
		{"x", a, 62, true}, {"x", b, 60.5, true}, {"x", b, 61.5, false}, {"z", a, 31, false},
	} {
		if got := h.entitled(c.tenant, netip.MustParseAddr(c.addr), second(c.at)) >= 0; got != c.want {
			t.Errorf("%s with %s at %v s: %v, want %v; %s", c.tenant, c.addr, c.at, got, c.want, h.text(netip.MustParseAddr(c.addr)))
		}
	}
}

// A tenant whose end the gateway never told loses its address at the latest when
// another one is programmed with it.
func TestProgrammingEndsTheRightOfTheHolderBefore(t *testing.T) {
	h := compile([]allocation{gives(10, "x", 1, a), gives(30, "y", 1, a)}, []change{programs(35, "y", 1, a)})
	addr := netip.MustParseAddr(a)
	if h.entitled("x", addr, second(34)) < 0 || h.entitled("x", addr, second(36)) >= 0 {
		t.Error(h.text(addr))
	}
}

// frame is a packet as it is captured.
func frame(protocol, ttl byte, src string, payload []byte) lab.Packet {
	ip := make([]byte, 34, 34+len(payload))
	ip[14], ip[14+8], ip[14+9] = 0x45, ttl, protocol
	return lab.Packet{Src: netip.MustParseAddr(src), Header: append(ip, payload...)}
}

func ports(from, to int) []byte {
	return append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, uint16(from)), uint16(to)), make([]byte, 16)...)
}

func TestJudge(t *testing.T) {
	h := compile([]allocation{gives(10, "x", 1, a), gives(30, "y", 1, a)}, []change{programs(11, "x", 1, a), programs(32, "y", 1, a)})
	quoted := append(append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, frame(17, 61, a, ports(firstPort, 40000)).Header[14:]...), 0)
	names := []string{"x", "y"}
	for _, c := range []struct {
		what string
		at   float64
		p    lab.Packet
		want string // part of the reason; empty: right
	}{
		{"UDP of the holder", 12, frame(17, 62, a, ports(40000, firstPort)), ""},
		{"TCP of the holder", 12, frame(6, 62, a, ports(40000, firstPort)), ""},
		{"an ICMP error of the holder", 12, frame(1, 62, a, quoted), ""},
		{"another tenant", 12, frame(17, 62, a, ports(40000, firstPort+1)), "not the tenant's then"},
		{"the holder before, before the next one is programmed", 31.5, frame(17, 62, a, ports(40000, firstPort)), ""},
		{"the holder before, afterwards", 32.5, frame(17, 62, a, ports(40000, firstPort)), "not the tenant's then"},
		{"an ICMP error of the holder before", 32.5, frame(1, 62, a, quoted), "not the tenant's then"},
		{"a pod's own address", 12, frame(17, 62, "10.128.0.10", ports(40000, firstPort)), "never any tenant's"},
		{"a pod with the VM's address", 12, frame(17, 62, lab.GatewayExternal, ports(40000, firstPort)), "never any tenant's"},
		{"an ICMP error of a pod with the VM's address", 12, frame(1, 62, lab.GatewayExternal, quoted), "never any tenant's"},
		{"the VM itself", 12, frame(1, 64, lab.GatewayExternal, quoted), ""},
		{"the VM itself, with its link-local address", 12, frame(58, 64, "fe80::1", quoted), ""},
		{"the VM itself, with an egress IP", 12, frame(6, 64, a, ports(40000, firstPort+1)), ""},
		{"the VM itself, with nobody's", 5, frame(6, 64, a, ports(40000, firstPort+1)), "no one's then"},
		{"an unknown port with a tenant's address", 12, frame(17, 62, a, ports(1, 2)), ""},
		{"an unknown port with nobody's address", 5, frame(17, 62, a, ports(1, 2)), "no one's then"},
	} {
		r := newRecorder(len(names))
		c.p.Time = second(c.at)
		r.see(c.p)
		v := judge(r, h, func(i int) string { return names[i] })
		reasons := strings.Join(v.Examples, "")
		if v.Checked != 1 || (v.Wrong == 0) != (c.want == "") || !strings.Contains(reasons, c.want) {
			t.Errorf("%s: %+v; want %q", c.what, v, c.want)
		}
	}
}

// The holder before may send until the new one is programmed, but not behind its
// packets.
func TestNeverTwoAtOnce(t *testing.T) {
	h := compile([]allocation{gives(10, "x", 1, a), gives(30, "y", 1, a)}, []change{programs(40, "y", 1, a)})
	r := newRecorder(2)
	for at, port := range map[float64]int{31: 0, 32: 1, 33: 0} {
		p := frame(17, 62, a, ports(40000, firstPort+port))
		p.Time = second(at)
		r.see(p)
	}
	v := judge(r, h, func(i int) string { return []string{"x", "y"}[i] })
	if v.Wrong != 1 || v.Reasons["an address that its next holder uses already"] != 1 {
		t.Errorf("%+v", v)
	}
}
