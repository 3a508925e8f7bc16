// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/shared/tenant"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func testHost() Host {
	return Host{
		Internal: "enp1s0", External: "enp7s0", MarkMask: 0xfff00000,
		OnLink: prefixes("192.168.64.0/18", "fd00:99::/64"), Own: addrs("192.168.99.12", "192.168.55.12"), IPv6: true,
	}
}

func numbered(n int, name string, ips ...string) Numbered {
	all := addrs(ips...)
	t := Numbered{Number: n, Tenant: tenant.Tenant{Cluster: "demo", Name: name}}
	for _, a := range all {
		if contains(testHost().OnLink, a) {
			t.GatewayIPs = append(t.GatewayIPs, a)
		} else {
			t.EgressIPs = append(t.EgressIPs, a)
		}
	}
	return t
}

func node(name, address string, subnets ...string) tenant.Node {
	return tenant.Node{Cluster: "demo", Name: name, Addresses: addrs(address), Subnets: prefixes(subnets...)}
}

func demo() Input {
	return Input{
		Host:     testHost(),
		Tenants:  []Numbered{numbered(1, "ns-blue", "192.168.99.13", "192.168.55.113"), numbered(2, "ns-red", "192.168.99.14", "192.168.55.114")},
		Nodes:    []tenant.Node{node("node1", "192.168.99.21", "10.128.0.0/23"), node("node2", "192.168.99.22", "10.128.2.0/23")},
		Networks: []tenant.Network{{Cluster: "demo", PodNetworks: prefixes("10.128.0.0/14")}},
	}
}

// canonical makes states comparable: the order within sets is free.
func canonical(s State) State {
	s = cloneState(s)
	for i := range s.Guard.Rules {
		s.Guard.Rules[i].Text = ""
	}
	for set := range s.Guard.Sets {
		for e := range s.Guard.Sets[set] {
			s.Guard.Sets[set][e] = ""
		}
	}
	for id, rules := range s.Chains {
		if !ordered(id.Name) {
			slices.Sort(rules)
		}
	}
	return s
}

// drive carries the steps out and fails on any that the kernel would refuse or
// that would let a packet leave wrongly.
func drive(t *testing.T, w *world, steps []Step) {
	t.Helper()
	driveTo(t, w, steps, len(steps))
}

// driveTo ends before step cut.
func driveTo(t *testing.T, w *world, steps []Step, cut int) {
	t.Helper()
	forwardGuardFirst(t, steps)
	packets := w.crossing()
	for i, s := range steps[:cut] {
		if err := w.apply(s); err != nil {
			t.Fatalf("step %d %q: %v\nall:\n%s", i, s, err, text(steps))
		}
		err := w.traffic()
		if err == nil && rowEnds(steps, i) {
			err = packets.next(w)
		}
		if err != nil {
			t.Fatalf("after step %d %q: %v\nall:\n%s", i, s, err, text(steps))
		}
	}
}

func settled(t *testing.T, want State, w *world) {
	t.Helper()
	if again := Diff(want, w.state); len(again) > 0 {
		t.Fatalf("a second pass is not empty:\n%s", text(again))
	}
	if again := diff(want, w.state); len(again) > 0 { // what is the same at a glance needs no look
		t.Fatalf("a second pass that looks closely is not empty:\n%s", text(again))
	}
	want.Sysctls = w.state.Sysctls
	if w.state.MarkMask = want.MarkMask; !want.same(w.state) {
		t.Fatal("nothing is to be done, but not at a glance")
	}
	have := w.state
	have.MarkMask = want.MarkMask
	have.Sysctls = want.Sysctls // those no longer wanted are not given back: others may rely on them by now
	if d := cmp.Diff(canonical(want), canonical(have), cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); d != "" {
		t.Fatalf("not the wanted state (-want +have):\n%s", d)
	}
}

func text(steps []Step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s\n", s)
	}
	return b.String()
}

func mustDesired(t *testing.T, in Input) State {
	t.Helper()
	want, problems := Desired(in)
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	return want
}

func TestDiffFromEmptyAndBack(t *testing.T) {
	w, want := newWorld(), mustDesired(t, demo())
	drive(t, w, Diff(want, w.state))
	settled(t, want, w)
	drive(t, w, Diff(State{}, w.state))
	left := w.state
	left.Sysctls = nil
	if d := cmp.Diff(State{MarkMask: left.MarkMask}, left, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("left after a cleanup:\n%s", d)
	}
	if len(w.flows) > 0 {
		t.Errorf("connections left after a cleanup: %v", w.flows)
	}
}

// cases are changes of the demo.
func cases() map[string]func(in *Input) {
	return map[string]func(in *Input){
		"add": func(in *Input) {
			in.Tenants = append(in.Tenants, numbered(3, "ns-green", "192.168.99.15", "192.168.55.115"))
		},
		"add in another branch": func(in *Input) {
			in.Tenants = append(in.Tenants, numbered(0x123, "ns-green", "192.168.99.15", "192.168.55.115"))
		},
		"remove":            func(in *Input) { in.Tenants = in.Tenants[:1] },
		"remove all":        func(in *Input) { in.Tenants = nil },
		"change egress IP":  func(in *Input) { in.Tenants[0].EgressIPs = addrs("192.168.55.120") },
		"change gateway IP": func(in *Input) { in.Tenants[0].GatewayIPs = addrs("192.168.99.20") },
		"swap egress IPs": func(in *Input) {
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
		},
		"swap gateway IPs": func(in *Input) {
			in.Tenants[0].GatewayIPs, in.Tenants[1].GatewayIPs = in.Tenants[1].GatewayIPs, in.Tenants[0].GatewayIPs
		},
		"hand over": func(in *Input) {
			in.Tenants = []Numbered{numbered(1, "ns-blue", "192.168.99.13", "192.168.55.120"), numbered(3, "ns-new", "192.168.99.14", "192.168.55.113")}
		},
		"number reused":  func(in *Input) { in.Tenants[0].Name = "ns-other" },
		"number changed": func(in *Input) { in.Tenants[0].Number = 0xabc },
		"more egress IPs": func(in *Input) {
			in.Tenants[0].EgressIPs = addrs("192.168.55.113", "192.168.55.116", "192.168.55.117")
		},
		"dual stack": func(in *Input) {
			in.Networks[0].PodNetworks = append(in.Networks[0].PodNetworks, prefixes("fd01::/48")...)
			in.Tenants[0] = numbered(1, "ns-blue", "192.168.99.13", "192.168.55.113", "fd00:99::13", "fd00:55::113")
		},
		"node leaves": func(in *Input) { in.Nodes = in.Nodes[:1] },
		"subnets swap": func(in *Input) {
			in.Nodes[0].Subnets, in.Nodes[1].Subnets = in.Nodes[1].Subnets, in.Nodes[0].Subnets
		},
		"pod network grows": func(in *Input) { in.Networks[0].PodNetworks = prefixes("10.128.0.0/13") },
		"pod network moves": func(in *Input) { in.Networks[0].PodNetworks = prefixes("10.64.0.0/14") },
		"external NIC":      func(in *Input) { in.Host.External = "enp8s0" },
	}
}

// TestDiffConverges drives each change from every point at which an earlier
// change can have been interrupted, and back.
func TestDiffConverges(t *testing.T) {
	converges(t, demo, cases())
	converges(t, dualDemo, cases6())
}

// dualDemo is demo with both tenants in both families.
func dualDemo() Input {
	in := demo()
	in.Networks[0].PodNetworks = append(in.Networks[0].PodNetworks, prefixes("fd01::/48")...)
	in.Nodes[0] = tenant.Node{Cluster: "demo", Name: "node1", Addresses: addrs("192.168.99.21", "fd00:99::21"), Subnets: prefixes("10.128.0.0/23", "fd01:0:0:1::/64")}
	in.Tenants[0] = numbered(1, "ns-blue", "192.168.99.13", "192.168.55.113", "fd00:99::13", "fd00:55::113")
	in.Tenants[1] = numbered(2, "ns-red", "192.168.99.14", "192.168.55.114", "fd00:99::14", "fd00:55::114")
	return in
}

func cases6() map[string]func(in *Input) {
	set := func(i int, ips ...string) func(in *Input) {
		return func(in *Input) {
			in.Tenants[i] = numbered(in.Tenants[i].Number, in.Tenants[i].Name, ips...)
		}
	}
	return map[string]func(in *Input){
		"IPv6 goes":        set(0, "192.168.99.13", "192.168.55.113"),
		"IPv4 goes":        set(0, "fd00:99::13", "fd00:55::113"),
		"all goes":         func(in *Input) { in.Tenants = nil },
		"new IPv6":         set(0, "192.168.99.13", "192.168.55.113", "fd00:99::13", "fd00:55::120"),
		"new IPv6 gateway": set(0, "192.168.99.13", "192.168.55.113", "fd00:99::20", "fd00:55::113"),
		"IPv6 swapped, IPv4 not": func(in *Input) {
			set(0, "192.168.99.13", "192.168.55.113", "fd00:99::14", "fd00:55::114")(in)
			set(1, "192.168.99.14", "192.168.55.114", "fd00:99::13", "fd00:55::113")(in)
		},
		"IPv6 handed over": func(in *Input) {
			in.Tenants = []Numbered{numbered(1, "ns-blue", "192.168.99.13", "192.168.55.113"), numbered(3, "ns-new", "fd00:99::14", "fd00:55::113")}
		},
		"node loses IPv6": func(in *Input) { in.Nodes[0] = node("node1", "192.168.99.21", "10.128.0.0/23") },
		"the VM loses IPv6 pods": func(in *Input) {
			in.Networks[0].PodNetworks, in.Nodes = prefixes("10.128.0.0/14"), nil
			set(0, "192.168.99.13", "192.168.55.113")(in)
			set(1, "192.168.99.14", "192.168.55.114")(in)
		},
	}
}

func converges(t *testing.T, begin func() Input, changes map[string]func(in *Input)) {
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			before, after := begin(), begin()
			change(&after)
			for _, way := range [][2]Input{{before, after}, {after, before}} {
				from, to := mustDesired(t, way[0]), mustDesired(t, way[1])
				start := newWorld()
				drive(t, start, Diff(from, start.state))
				steps := Diff(to, start.state)
				for cut := range len(steps) + 1 {
					w := newWorld()
					drive(t, w, Diff(from, w.state))
					driveTo(t, w, steps, cut)
					drive(t, w, Diff(to, w.state))
					settled(t, to, w)
				}
			}
		})
	}
}

// TestDiffRandom drives random inputs from random points of interruption:
// tenants of either family and of both, whose addresses change hands.
func TestDiffRandom(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	w := newWorld()
	for round := range 400 {
		in := demo()
		in.Tenants = nil
		if r.IntN(2) == 0 {
			in.Networks[0].PodNetworks = append(in.Networks[0].PodNetworks, prefixes("fd01::/48")...)
		}
		egress, gateways, egress6, gateways6 := r.Perm(8), r.Perm(8), r.Perm(8), r.Perm(8)
		for i, n := range r.Perm(6)[:r.IntN(6)] {
			four := []string{fmt.Sprintf("192.168.99.%d", 30+gateways[i]), fmt.Sprintf("192.168.55.%d", 130+egress[i])}
			six := []string{fmt.Sprintf("fd00:99::%d", 30+gateways6[i]), fmt.Sprintf("fd00:55::%d", 130+egress6[i])}
			ips := [][]string{four, six, append(slices.Clone(four), six...)}[r.IntN(3)]
			in.Tenants = append(in.Tenants, numbered(n*0x77+1, fmt.Sprintf("t%d", r.IntN(3)*10+i), ips...))
		}
		want := mustDesired(t, in)
		steps := Diff(want, w.state)
		if r.IntN(3) > 0 {
			driveTo(t, w, steps, r.IntN(len(steps)+1))
			continue
		}
		drive(t, w, steps)
		settled(t, want, w)
		if t.Failed() {
			t.Fatalf("round %d, seed %d", round, seed)
		}
	}
}

// TestDiffRepairs damages a settled state in every way that a hand can.
func TestDiffRepairs(t *testing.T) {
	want := mustDesired(t, demo())
	damage := map[string]func(s *State){
		"hook gone":      func(s *State) { delete(s.Hooks, ChainID{tenant.IPv4, "filter", "FORWARD"}) },
		"hook not first": func(s *State) { s.Hooks[ChainID{tenant.IPv4, "filter", "FORWARD"}][0].Position = 3 },
		"hook twice": func(s *State) {
			id := ChainID{tenant.IPv4, "nat", "POSTROUTING"}
			s.Hooks[id] = append(s.Hooks[id], Hook{2, s.Hooks[id][0].Rule})
		},
		"leaf gone": func(s *State) { s.Chains[ChainID{tenant.IPv4, "nat", "EGW-S00"}] = nil },
		"leaf twice": func(s *State) {
			id := ChainID{tenant.IPv4, "nat", "EGW-S00"}
			s.Chains[id] = append(s.Chains[id], s.Chains[id][0])
		},
		"leaf for nobody": func(s *State) {
			id := ChainID{tenant.IPv4, "nat", "EGW-S00"}
			s.Chains[id] = append([]string{"-m mark --mark 0x700000/0xfff00000 -j RETURN"}, s.Chains[id][1:]...)
		},
		"guard rule gone":              func(s *State) { s.Guard.Rules = s.Guard.Rules[1:] },
		"guard gone":                   func(s *State) { s.Guard = Guard{Sets: map[string]GuardSet{}} },
		"element gone":                 func(s *State) { clear(s.Guard.Sets["owners4"]) },
		"a range that is no prefix":    func(s *State) { s.Guard.Sets["pods4"]["100.64.0.5-100.64.0.9"] = "" },
		"translating by a map is gone": func(s *State) { clear(s.Guard.Sets["translate4"]) },
		"a map translates wrongly": func(s *State) {
			s.Guard.Sets["translate4"] = GuardSet{"0x100000 : 192.168.55.114": "", "0x200000 : 192.168.55.113": "", "0x300000 : 192.168.55.199": ""}
		},
		"a map marks nobody": func(s *State) { clear(s.Guard.Sets["links4"]) },
		"order":              func(s *State) { slices.Reverse(s.Chains[ChainID{tenant.IPv4, "filter", "EGW-OUT"}]) },
		"foreign rule": func(s *State) {
			id := ChainID{tenant.IPv4, "filter", "EGW-FWD"}
			s.Chains[id] = append(s.Chains[id], "-j ACCEPT")
		},
		"unknown chain":   func(s *State) { s.Chains[ChainID{tenant.IPv4, "filter", "EGW-OLD"}] = []string{"-j ACCEPT"} },
		"sysctl":          func(s *State) { s.Sysctls["net/ipv4/conf/all/arp_ignore"] = "0" },
		"link down":       func(s *State) { l := s.Links["eg001"]; l.Ready = false; s.Links["eg001"] = l },
		"link gone":       func(s *State) { delete(s.Links, "eg001"); delete(s.Addrs, Addr{"eg001", addrs("192.168.99.13")[0]}) },
		"link's MAC":      func(s *State) { l := s.Links["eg001"]; l.MAC = "02:00:00:00:00:01"; s.Links["eg001"] = l },
		"alias gone":      func(s *State) { l := s.Links["eg001"]; l.Tenant = ""; s.Links["eg001"] = l },
		"stray address":   func(s *State) { s.Addrs[Addr{"eg001", addrs("192.168.99.77")[0]}] = "" },
		"stray egress IP": func(s *State) { s.Addrs[Addr{"enp7s0", addrs("192.168.55.199")[0]}] = "" },
		"stray route": func(s *State) {
			s.Routes[Route{prefixes("10.128.0.0/23")[0], addrs("192.168.99.99")[0], "enp1s0"}] = true
		},
		"neighbour table gone": func(s *State) { s.Neighbours = Neighbours{} },
		"neighbour rule gone":  func(s *State) { s.Neighbours.Shape += "!" },
		"neighbour gone":       func(s *State) { delete(s.Neighbours.MACs, addrs("192.168.99.13")[0]) },
		"neighbour wrong":      func(s *State) { s.Neighbours.MACs[addrs("192.168.99.13")[0]] = "02:00:00:00:00:01" },
		"stray neighbour":      func(s *State) { s.Neighbours.MACs[addrs("192.168.99.99")[0]] = "02:00:00:00:00:01" },
		"route gone":           func(s *State) { clear(s.Routes) },
	}
	for name, hit := range damage {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			drive(t, w, Diff(want, w.state))
			settled(t, want, w)
			hit(&w.state)
			w.damaged = true
			steps := Diff(want, w.state)
			if len(steps) == 0 || want.same(w.state) {
				t.Fatal("nothing is repaired")
			}
			drive(t, w, steps)
			settled(t, want, w)
		})
	}
}

// TestDiffTouchesOneTenant checks that a change of one tenant names no rule,
// link or address of another.
func TestDiffTouchesOneTenant(t *testing.T) {
	w, want := newWorld(), mustDesired(t, demo())
	drive(t, w, Diff(want, w.state))
	in := demo()
	in.Tenants[0].EgressIPs = addrs("192.168.55.120")
	steps := text(Diff(mustDesired(t, in), w.state))
	want2 := `nft 'add element inet egw-guard egress4 { 192.168.55.120 : 0x100000 }'
nft 'add element inet egw-guard owners4 { "eg001" . 0x100000 . 192.168.55.120 }'
nft 'add element inet egw-guard stale4 { 0x100000 . 192.168.55.120 }'
nft 'delete element inet egw-guard translate4 { 0x100000 : 192.168.55.113 }'
iptables -w -t nat -D EGW-S00 -m mark --mark 0x100000/0xfff00000 -m comment --comment "demo/ns-blue" -j SNAT --to-source 192.168.55.113
iptables -w -t nat -A EGW-S00 -m mark --mark 0x100000/0xfff00000 -m comment --comment "demo/ns-blue" -j SNAT --to-source 192.168.55.120
nft 'add element inet egw-guard translate4 { 0x100000 : 192.168.55.120 }'
ip address add 192.168.55.120/32 dev enp7s0 label enp7s0:egw
conntrack -D --reply-dst 192.168.55.113
ip address delete 192.168.55.113/32 dev enp7s0
arping -U -I enp7s0 192.168.55.120
nft 'delete element inet egw-guard egress4 { 192.168.55.113 : 0x100000 }'
nft 'delete element inet egw-guard owners4 { "eg001" . 0x100000 . 192.168.55.113 }'
nft 'delete element inet egw-guard stale4 { 0x100000 . 192.168.55.113 }'
`
	if d := cmp.Diff(want2, steps); d != "" {
		t.Error(d)
	}
}
