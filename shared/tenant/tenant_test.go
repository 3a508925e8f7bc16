// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func nets(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func goodTenant() Tenant {
	return Tenant{
		Schema: Schema, Cluster: "c1", Name: "ns-blue", UID: "u", Generation: 1, Namespaces: []string{"ns-blue"}, Pool: "public", Group: "default",
		GatewayIPs: addrs("192.168.99.13", "fd00::13"), EgressIPs: addrs("192.168.55.113", "192.168.55.114", "fd01::113"),
	}
}

func goodNode() Node {
	return Node{
		Schema: Schema, Cluster: "c1", Name: "node1.example", Subnets: nets("10.128.0.0/23", "fd02::/64"),
		Addresses: addrs("192.168.99.21", "fd00::21"),
	}
}

func check(t *testing.T, name string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: %v; want %q", name, err, want)
	}
}

func TestTenantValidate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Tenant)
		want   string
	}{
		"good":                 {func(*Tenant) {}, ""},
		"one family":           {func(x *Tenant) { x.GatewayIPs, x.EgressIPs = x.GatewayIPs[1:], x.EgressIPs[2:] }, ""},
		"schema":               {func(x *Tenant) { x.Schema = 2 }, "schema version 2"},
		"no schema":            {func(x *Tenant) { x.Schema = 0 }, "schema version 0"},
		"cluster":              {func(x *Tenant) { x.Cluster = "c.1" }, "cluster"},
		"name":                 {func(x *Tenant) { x.Name = "NS" }, `"NS"`},
		"no uid":               {func(x *Tenant) { x.UID = "" }, "no uid"},
		"group":                {func(x *Tenant) { x.Group = "" }, "group"},
		"no gateway ip":        {func(x *Tenant) { x.GatewayIPs = nil }, "no gateway IP"},
		"no egress ip":         {func(x *Tenant) { x.EgressIPs = nil }, "both or neither"},
		"family without other": {func(x *Tenant) { x.GatewayIPs = x.GatewayIPs[:1] }, "IPv6: 0 gateway IPs with 1"},
		"two next hops":        {func(x *Tenant) { x.GatewayIPs = append(x.GatewayIPs, addrs("192.168.99.14")...) }, "at most 1"},
		"twice":                {func(x *Tenant) { x.EgressIPs[1] = x.EgressIPs[0] }, "stands twice"},
		"both uses":            {func(x *Tenant) { x.EgressIPs[1] = x.GatewayIPs[0] }, "both a gateway IP and an egress IP"},
		"loopback":             {func(x *Tenant) { x.EgressIPs = addrs("127.0.0.1", "fd01::113") }, "127.0.0.1"},
		"invalid address":      {func(x *Tenant) { x.EgressIPs[0] = netip.Addr{} }, "no address"},
		"many": {func(x *Tenant) {
			a := x.EgressIPs[1]
			for range maxList + 1 {
				a = a.Next()
				x.EgressIPs = append(x.EgressIPs, a)
			}
		}, "at most 256"},
		"tombstone":             {func(x *Tenant) { *x = Tenant{Schema: Schema, Cluster: "c1", Name: "a", UID: "u", Released: true} }, ""},
		"tombstone without uid": {func(x *Tenant) { *x = Tenant{Schema: Schema, Cluster: "c1", Name: "a", Released: true} }, "no uid"},
	} {
		x := goodTenant()
		c.change(&x)
		check(t, name, x.Validate(), c.want)
	}
}

func TestNodeValidate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Node)
		want   string
	}{
		"good":          {func(*Node) {}, ""},
		"no subnets":    {func(x *Node) { x.Subnets = nil }, ""},
		"no addresses":  {func(x *Node) { x.Addresses = nil }, ""},
		"name":          {func(x *Node) { x.Name = "a..b" }, "empty name"},
		"two addresses": {func(x *Node) { x.Addresses = addrs("192.168.99.21", "192.168.99.22") }, "at most 1"},
		"overlap":       {func(x *Node) { x.Subnets = nets("10.128.0.0/23", "10.128.1.0/24") }, "overlap"},
		"default":       {func(x *Node) { x.Subnets = nets("0.0.0.0/0") }, "all traffic"},
		"default v6":    {func(x *Node) { x.Subnets = nets("::/0") }, "all traffic"},
		"host bits":     {func(x *Node) { x.Subnets = nets("10.128.0.1/23") }, "canonical"},
		"invalid":       {func(x *Node) { x.Subnets = []netip.Prefix{{}} }, "canonical"},
		"mapped":        {func(x *Node) { x.Subnets = nets("::ffff:10.0.0.0/120") }, "canonical"},
		"own address":   {func(x *Node) { x.Subnets = nets("192.168.64.0/18") }, "192.168.99.21"},
	} {
		x := goodNode()
		c.change(&x)
		check(t, name, x.Validate(), c.want)
	}
}

func TestNetworkValidate(t *testing.T) {
	t.Parallel()
	good := Network{Schema: Schema, Cluster: "c1", PodNetworks: nets("10.128.0.0/14", "fd02::/48")}
	check(t, "good", good.Validate(), "")
	bad := good
	bad.Cluster = ""
	check(t, "cluster", bad.Validate(), "cluster")
	bad = good
	bad.PodNetworks = nets("10.0.0.0/8", "10.128.0.0/14")
	check(t, "overlap", bad.Validate(), "overlap")
}

func TestValidateAddr(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"192.0.2.1": "", "10.0.0.1": "", "2001:db8::1": "", "fd00::1": "",
		"0.0.0.0": "unicast", "::": "unicast", "127.0.0.1": "unicast", "::1": "unicast", "224.0.0.1": "unicast", "ff02::1": "unicast",
		"169.254.1.1": "link-local", "fe80::1": "link-local", "255.255.255.255": "unicast", "fd00::1%eth0": "zone", "::ffff:192.0.2.1": "IPv6 form",
	} {
		check(t, s, ValidateAddr(netip.MustParseAddr(s)), want)
	}
}

func TestValidateNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for s, ok := range map[string]bool{
		"a": true, "a-b": true, "1": true, long: true, "": false, "-a": false, "a-": false, "a_b": false, "A": false, "a.b": false, "ü": false, long + "a": false, "a b": false, "*": false, ">": false,
	} {
		if (ValidateLabel(s) == nil) != ok {
			t.Errorf("label %q: %v", s, ValidateLabel(s))
		}
	}
	for s, ok := range map[string]bool{
		"a.b": true, "node1.example.com": true, "": false, ".a": false, "a.": false, "a..b": false, "a.*": false, strings.Repeat("a.", 130) + "a": false,
	} {
		if (ValidateName(s) == nil) != ok {
			t.Errorf("name %q: %v", s, ValidateName(s))
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]Key{
		"c1.tenant.ns-blue": TenantKey("c1", "ns-blue"), "c1.node.node1.example": NodeKey("c1", "node1.example"),
		"c1.meta.network": NetworkKey("c1"), "c1.meta.ready": ReadyKey("c1"), "c1.meta.heartbeat": HeartbeatKey("c1"),
	} {
		got, err := ParseKey(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("%s: %+v %v", s, got, err)
		}
	}
	for _, s := range []string{"", ".", "c1", "c1.tenant", "c1.tenant.", "c1.meta.", "c1.meta.ready.x", "c1.meta.tenant", "c1.ready", ".tenant.a", "C1.tenant.a", "c1.tenant.a..b", "c1.tenants.a"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("%q: %+v", s, k)
		}
	}
}

func TestStatusKeys(t *testing.T) {
	t.Parallel()
	for s, want := range map[string][3]string{
		SummaryKey("gw1"): {"gw1", "", ""}, StatusKey("gw1", "c1", "a.b"): {"gw1", "c1", "a.b"},
		StatusKey("gw1", "summary", "x"): {"gw1", "summary", "x"},
	} {
		g, c, n, err := ParseStatusKey(s)
		if err != nil || [3]string{g, c, n} != want {
			t.Errorf("%s: %s %s %s %v", s, g, c, n, err)
		}
	}
	for _, s := range []string{"", "gw1", "gw1.", "gw1.tenant", "gw1.tenant.c1", "gw1.tenant.c1.", "gw1.summary.x", ".summary", "gw1.node.c1.x"} {
		if _, _, _, err := ParseStatusKey(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func TestFamilies(t *testing.T) {
	t.Parallel()
	list := addrs("192.0.2.1", "fd00::1", "192.0.2.2")
	if got := IPv4.Addrs(list); !slices.Equal(got, addrs("192.0.2.1", "192.0.2.2")) {
		t.Error(got)
	}
	if got := IPv6.Prefixes(nets("10.0.0.0/8", "fd00::/8")); !slices.Equal(got, nets("fd00::/8")) {
		t.Error(got)
	}
	if a, ok := IPv6.First(list); !ok || a != list[1] {
		t.Error(a, ok)
	}
	if _, ok := IPv6.First(list[:1]); ok {
		t.Error("found what is not there")
	}
	if IPv4.Bits() != 32 || IPv6.Bits() != 128 || IPv4.String() != "IPv4" || IPv6.String() != "IPv6" {
		t.Error("names")
	}
	if FamilyOf(netip.MustParseAddr("::ffff:192.0.2.1")) != IPv4 {
		t.Error("mapped")
	}
}
