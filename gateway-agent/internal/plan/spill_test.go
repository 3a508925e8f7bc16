// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/shared/tenant"
)

func spillInput(spills ...Spill) Input {
	ip := netip.MustParseAddr
	return Input{
		Host: Host{
			Internal: "enp1s0", External: "enp7s0", MarkMask: 0xfff00000, OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.64.0/18")},
		},
		Tenants: []Numbered{{Number: 1, Tenant: tenant.Tenant{Cluster: "demo", Name: "ns-blue",
			GatewayIPs: []netip.Addr{ip("192.168.99.13")}, EgressIPs: []netip.Addr{ip("192.168.55.113"), ip("192.168.55.115"), ip("192.168.55.116")}}}},
		Spills: spills,
	}
}

func TestSpills(t *testing.T) {
	ip := netip.MustParseAddr
	good := Spill{"demo/ns-blue", 17, netip.MustParseAddrPort("203.0.113.11:53"), ip("192.168.55.113"), ip("192.168.55.115")}
	with := func(change func(*Spill)) Spill { s := good; change(&s); return s }
	want, problems := Desired(spillInput(good,
		with(func(s *Spill) { s.Tenant = "demo/ns-red" }),
		with(func(s *Spill) { s.Protocol = 1 }),
		with(func(s *Spill) { s.To = ip("192.168.55.114") }),
		with(func(s *Spill) { s.From = ip("192.168.55.114") }),
		with(func(s *Spill) { s.To = s.From }),
		with(func(s *Spill) { s.Destination = netip.MustParseAddrPort("[2001:db8::1]:53") }),
	))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	at := ChainID{tenant.IPv4, "nat", chainSpill}
	rest := ` -d 203.0.113.11/32 -p udp -m udp --dport 53 -m mark --mark 0x100000/0xfff00000 -m comment --comment "demo/ns-blue" -j SNAT --to-source 192.168.55.115`
	// The first of three addresses has two of the four parts.
	if d := cmp.Diff([]string{"-s 0.0.0.0/0.0.0.3" + rest, "-s 0.0.0.3/0.0.0.3" + rest}, want.Chains[at]); d != "" {
		t.Error(d)
	}
	snat := want.Chains[ChainID{tenant.IPv4, "nat", chainSNAT}]
	if len(snat) != 3 || snat[1] != "-o enp7s0 -j EGW-SPILL" {
		t.Errorf("%v", snat)
	}

	plain, _ := Desired(spillInput())
	if _, there := plain.Chains[at]; there {
		t.Error("the chain is there without an exception")
	}
	if d := Diff(plain, want.WithoutSpills()); len(d) > 0 {
		t.Errorf("without exceptions something else remains: %v", d)
	}
	if len(want.Chains[at]) != 2 {
		t.Error("WithoutSpills changed its argument")
	}
	// To and fro touches the exceptions only, and no connection.
	for _, steps := range [][]Step{Diff(want, plain), Diff(plain, want)} {
		if len(steps) == 0 {
			t.Error("nothing to do")
		}
		for _, s := range steps {
			if text := s.String(); s.Executor() != Kernel || !strings.Contains(text, chainSpill) && !strings.Contains(text, chainSNAT) {
				t.Errorf("step: %s", text)
			}
		}
	}
	// The jump is gone before the chain goes.
	steps := Diff(plain, want)
	last := steps[len(steps)-1].String()
	if i := slices.IndexFunc(steps, func(s Step) bool { return strings.Contains(s.String(), chainSNAT) }); i != 0 || !strings.Contains(last, "-X "+chainSpill) {
		t.Errorf("order: %v", steps)
	}
}
