// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/shared/tenant"
)

var update = flag.Bool("update", false, "write the golden files")

// dump writes a state as a person would want to read it.
func dump(s State) string {
	var b strings.Builder
	for _, k := range sorted(s.Sysctls) {
		fmt.Fprintf(&b, "sysctl %s = %s\n", k, s.Sysctls[k])
	}
	for _, name := range sorted(s.Links) {
		l := s.Links[name]
		fmt.Fprintf(&b, "link %s (%s) %s on %s, IPv6 %t\n", name, l.Tenant, l.MAC, l.Parent, l.IPv6)
	}
	for _, a := range sortedFunc(s.Addrs, compareAddr) {
		fmt.Fprintf(&b, "address %s on %s for %s\n", a.IP, a.Dev, s.Addrs[a])
	}
	for _, r := range sortedFunc(s.Routes, compareRoute) {
		fmt.Fprintf(&b, "route %s via %s on %s\n", r.Dst, r.Via, r.Dev)
	}
	last := ""
	for _, id := range sortedFunc(s.Chains, compareChain) {
		if t := fmt.Sprintf("\n%s %s\n", id.Family, id.Table); t != last {
			b.WriteString(t)
			last = t
			for _, h := range sortedFunc(s.Hooks, compareChain) {
				if h.Family == id.Family && h.Table == id.Table {
					fmt.Fprintf(&b, "  -I %s 1 %s\n", h.Name, s.Hooks[h][0].Rule)
				}
			}
		}
		fmt.Fprintf(&b, "  :%s\n", id.Name)
		for _, r := range s.Chains[id] {
			fmt.Fprintf(&b, "  -A %s %s\n", id.Name, r)
		}
	}
	b.WriteString("\n" + strings.Join(NFTLines(SetGuard{s.Guard}), "\n") + "\n")
	b.WriteString("\n" + strings.Join(NFTLines(SetNeighbours{s.Neighbours}), "\n") + "\n")
	return b.String()
}

func TestDesiredGolden(t *testing.T) {
	dual := demo()
	cases()["dual stack"](&dual)
	many := demo()
	many.Tenants = append(many.Tenants, numbered(0x1f, "a.b", "192.168.99.15", "192.168.55.115"),
		numbered(0xabc, "three-addresses", "192.168.99.16", "192.168.55.116", "192.168.55.117", "192.168.55.118"))
	for name, in := range map[string]Input{"demo": demo(), "dual": dual, "many": many, "none": {Host: testHost()}} {
		t.Run(name, func(t *testing.T) {
			got, path := dump(mustDesired(t, in)), filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("%s (go test -update writes it):\n%s", path, d)
			}
		})
	}
}

func TestDesiredProblems(t *testing.T) {
	for name, c := range map[string]struct {
		change func(in *Input)
		want   []string // "tenant or node: reason"
		links  int      // that are left
	}{
		"none":                {func(*Input) {}, nil, 2},
		"no number":           {func(in *Input) { in.Tenants[0].Number = 0 }, []string{"ns-blue: NoNumber"}, 1},
		"same number":         {func(in *Input) { in.Tenants[1].Number = 1 }, []string{"ns-red: NumberTaken"}, 1},
		"same gateway IP":     {func(in *Input) { in.Tenants[0].GatewayIPs = in.Tenants[1].GatewayIPs }, []string{"ns-red: AddressTaken"}, 1},
		"same egress IP":      {func(in *Input) { in.Tenants[0].EgressIPs = in.Tenants[1].EgressIPs }, []string{"ns-red: AddressTaken"}, 1},
		"held loses":          {func(in *Input) { in.Tenants[0].EgressIPs = in.Tenants[1].EgressIPs; in.Tenants[0].Held = true }, []string{"ns-blue: AddressTaken"}, 1},
		"egress is a gateway": {func(in *Input) { in.Tenants[1].EgressIPs = in.Tenants[0].GatewayIPs }, []string{"ns-red: AddressTaken"}, 1},
		"the VM's address":    {func(in *Input) { in.Tenants[0].EgressIPs = addrs("192.168.55.12") }, []string{"ns-blue: AddressTaken"}, 1},
		"a node's address":    {func(in *Input) { in.Tenants[0].GatewayIPs = addrs("192.168.99.21") }, []string{"ns-blue: AddressTaken"}, 1},
		"a pod's address":     {func(in *Input) { in.Tenants[0].EgressIPs = addrs("10.129.0.1") }, []string{"ns-blue: AddressInPodNetwork"}, 1},
		"gateway off link":    {func(in *Input) { in.Tenants[0].GatewayIPs = addrs("192.168.10.1") }, []string{"ns-blue: GatewayIPNotOnLink"}, 1},
		"no egress IP":        {func(in *Input) { in.Tenants[0].EgressIPs = nil }, []string{"ns-blue: NoEgressIP"}, 1},
		"tombstone":           {func(in *Input) { in.Tenants[0].Released = true }, nil, 1},
		"IPv6 is off": {func(in *Input) {
			in.Host.IPv6 = false
			in.Tenants[0] = numbered(1, "ns-blue", "192.168.99.13", "192.168.55.113", "fd00:99::13", "fd00:55::113")
			in.Nodes[0].Subnets = prefixes("10.128.0.0/23", "fd01::/64")
			in.Nodes[0].Addresses = addrs("192.168.99.21", "fd00:99::21")
		}, []string{"node1: IPv6NotSupported", "ns-blue: IPv6NotSupported"}, 2},
		"next hop off link":  {func(in *Input) { in.Nodes[0].Addresses = addrs("10.0.0.1") }, []string{"node1: NextHopNotOnLink", "node1: NoNextHop"}, 2},
		"next hop is the VM": {func(in *Input) { in.Nodes[0].Addresses = addrs("192.168.99.12") }, []string{"node1: NodeAddressTaken", "node1: NoNextHop"}, 2},
		"same node address":  {func(in *Input) { in.Nodes[1].Addresses = in.Nodes[0].Addresses }, []string{"node2: NodeAddressTaken", "node2: NoNextHop"}, 2},
		"subnets overlap":    {func(in *Input) { in.Nodes[1].Subnets = prefixes("10.128.0.0/22") }, []string{"node2: SubnetOverlap"}, 2},
		"subnet is ours":     {func(in *Input) { in.Nodes[1].Subnets = prefixes("192.168.99.0/24") }, []string{"node2: SubnetOnLink", "ns-blue: AddressInPodNetwork", "ns-red: AddressInPodNetwork"}, 0},
		"bad mask":           {func(in *Input) { in.Host.MarkMask = 0xff }, []string{": BadMarkMask"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			in := demo()
			c.change(&in)
			state, problems := Desired(in)
			var got []string
			for _, p := range problems {
				got = append(got, p.Tenant+p.Node+": "+p.Reason)
				if p.Message == "" {
					t.Errorf("no message: %+v", p)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("problems %v:\n%s", problems, d)
			}
			if len(state.Links) != c.links {
				t.Errorf("links: %v", state.Links)
			}
			w := newWorld()
			drive(t, w, Diff(state, w.state))
			settled(t, state, w)
		})
	}
}

func TestAssignNumbers(t *testing.T) {
	full := make(map[int]bool)
	shown := make(map[string]int)
	for n := 1; n <= MaxNumber; n++ {
		full[n] = true
		shown[fmt.Sprintf("c/t%d", n)] = n
	}
	allButOne := maps.Clone(full)
	delete(allButOne, 1)
	for name, c := range map[string]struct {
		used     map[int]bool
		observed map[string]int
		ids      []string
		want     map[string]int
	}{
		"first":            {nil, nil, []string{"c/b", "c/a"}, map[string]int{"c/a": 1, "c/b": 2}},
		"others' are kept": {map[int]bool{1: true}, nil, []string{"c/a"}, map[string]int{"c/a": 2}},
		"observed":         {nil, map[string]int{"c/b": 1}, []string{"c/a", "c/b"}, map[string]int{"c/a": 2, "c/b": 1}},
		"memory wins":      {map[int]bool{1: true}, map[string]int{"c/b": 1, "c/a": 2}, []string{"c/b"}, map[string]int{"c/b": 3}},
		"leaving":          {nil, map[string]int{"c/x": 1}, []string{"c/a"}, map[string]int{"c/a": 2}},
		"nonsense":         {nil, map[string]int{"c/a": -1, "c/b": MaxNumber + 1}, []string{"c/a", "c/b"}, map[string]int{"c/a": 1, "c/b": 2}},
		"twice observed":   {nil, map[string]int{"c/a": 7, "c/b": 7}, []string{"c/a", "c/b"}, map[string]int{"c/a": 7, "c/b": 1}},
		"full":             {full, nil, []string{"c/more"}, nil},
		"full, one leaves": {allButOne, shown, []string{"c/more"}, map[string]int{"c/more": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, AssignNumbers(c.used, c.observed, c.ids), cmpopts.EquateEmpty()); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAggregate(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"10.128.0.0/23 10.128.2.0/23": "10.128.0.0/22",
		"10.128.2.0/23 10.128.4.0/23": "10.128.2.0/23 10.128.4.0/23",
		"10.128.0.0/14 10.128.2.0/23 10.129.0.0/16":                        "10.128.0.0/14",
		"10.0.0.0/24 10.0.1.0/24 10.0.2.0/23 fd01::/49 fd01:0:0:8000::/49": "10.0.0.0/22 fd01::/48",
	} {
		var list []netip.Prefix
		for _, s := range strings.Fields(in) {
			list = append(list, netip.MustParsePrefix(s))
		}
		if got := strings.Trim(fmt.Sprint(aggregate(list)), "[]"); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	for n := 1; n <= MaxNumber; n++ {
		if got, ok := LinkNumber(LinkName(n)); !ok || got != n {
			t.Fatalf("%d: %d, %t", n, got, ok)
		}
	}
	for _, foreign := range []string{"eg000", "eg0001", "eg00A", "eg+01", "eg", "egress0", "eth0", "eg0x1"} {
		if n, ok := LinkNumber(foreign); ok {
			t.Errorf("%s is taken for number %d", foreign, n)
		}
	}
	for ip, want := range map[string]string{"192.168.99.13": "02:00:c0:a8:63:0d", "fd00:99::13": MAC(netip.MustParseAddr("fd00:99::13"))} {
		if got := MAC(netip.MustParseAddr(ip)); got != want {
			t.Errorf("%s: %s", ip, got)
		}
	}
	for nic, want := range map[string]string{"enp1s0": "enp1s0:egw", "enp1s0f0np0": "enp1s0f0np0:egw", "enp1s0f0np0.1": "egw"} {
		if got := AddrLabel(nic); got != want {
			t.Errorf("%s: %s", nic, got)
		}
	}
}

func TestBuckets(t *testing.T) {
	if got := buckets(tenant.IPv4, 3); !slices.Equal(got, []string{"-s 0.0.0.0/0.0.0.3 ", "-s 0.0.0.1/0.0.0.3 ", "-s 0.0.0.2/0.0.0.3 ", "-s 0.0.0.3/0.0.0.3 "}) {
		t.Errorf("%q", got)
	}
}

// What a VM has learned from router advertisements is forgotten once it
// forwards, so the settings that prevent it come first.
func TestForwardingComesLast(t *testing.T) {
	in := demo()
	cases()["dual stack"](&in)
	in.Host.Advertised = []string{"enp1s0", "enp7s0"}
	var got []string
	for _, s := range Diff(mustDesired(t, in), newWorld().state) {
		if s, ok := s.(SetSysctl); ok && strings.Contains(s.Key, "ipv6") {
			got = append(got, s.Key+"="+s.Value)
		}
	}
	want := []string{"net/ipv6/conf/enp1s0/accept_ra=2", "net/ipv6/conf/enp1s0/accept_ra_defrtr=0", "net/ipv6/conf/enp7s0/accept_ra=2", "net/ipv6/conf/all/forwarding=1"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, observed6(in.Host, want)); d != "" {
		t.Errorf("keys that plans may be about: %s", d)
	}
}

// observed6 returns those of the list whose keys are observed.
func observed6(h Host, list []string) []string {
	var out []string
	for _, l := range list {
		if key, _, _ := strings.Cut(l, "="); slices.Contains(SysctlKeys(h), key) {
			out = append(out, l)
		}
	}
	return out
}
