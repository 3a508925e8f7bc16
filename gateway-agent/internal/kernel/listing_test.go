// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// listed is what a table holds as the program nft lists it, written as plans do.
type listed struct {
	Rules map[string][]string        // comments, by chain
	Sets  map[string]map[string]bool // elements
}

// list has nft list a table.
func (l *lab) list(table string) listed {
	l.t.Helper()
	type set struct {
		Name string            `json:"name"`
		Elem []json.RawMessage `json:"elem"`
	}
	var all struct {
		Nftables []struct {
			Set, Map *set
			Rule     *struct{ Chain, Comment string }
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(l.gw.Run("nft -j list table "+table)), &all); err != nil {
		l.t.Fatal(err)
	}
	out := listed{Rules: map[string][]string{}, Sets: map[string]map[string]bool{}}
	for _, o := range all.Nftables {
		if r := o.Rule; r != nil {
			out.Rules[r.Chain] = append(out.Rules[r.Chain], r.Comment)
		}
		for _, s := range []*set{o.Set, o.Map} {
			if s == nil {
				continue
			}
			out.Sets[s.Name] = map[string]bool{}
			for _, e := range s.Elem {
				if !plan.CountedSet(s.Name) {
					out.Sets[s.Name][l.element(s.Name, e)] = true
				}
			}
		}
	}
	return out
}

// element writes an element as plans do.
func (l *lab) element(set string, raw json.RawMessage) string {
	l.t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		l.t.Fatal(err)
	}
	var write func(v any) string
	write = func(v any) string {
		switch v := v.(type) {
		case string:
			if a, err := netip.ParseAddr(v); err == nil && strings.HasPrefix(set, "pods") {
				return netip.PrefixFrom(a, a.BitLen()).String()
			}
			return v
		case float64:
			return fmt.Sprintf("%#x", uint32(v))
		case []any: // of a map
			return write(v[0]) + " : " + write(v[1])
		case map[string]any:
			if e, ok := v["elem"].(map[string]any); ok { // with a comment
				return write(e["val"])
			}
			if p, ok := v["prefix"].(map[string]any); ok {
				return fmt.Sprintf("%v/%v", p["addr"], p["len"])
			}
			if r, ok := v["range"].([]any); ok {
				return fmt.Sprintf("%v-%v", r[0], r[1])
			}
			if c, ok := v["concat"].([]any); ok {
				var parts []string
				for _, p := range c {
					parts = append(parts, write(p))
				}
				return strings.Join(parts, " . ")
			}
		}
		l.t.Fatalf("%s: nft lists %s", set, raw)
		return ""
	}
	return write(v)
}

// asListed compares what is observed of both tables with what nft lists.
func (l *lab) asListed(what string) {
	l.t.Helper()
	state := l.observe()
	seen := listed{Rules: map[string][]string{}, Sets: map[string]map[string]bool{}}
	for _, r := range state.Guard.Rules {
		seen.Rules[r.Chain] = append(seen.Rules[r.Chain], r.Comment)
	}
	for name, set := range state.Guard.Sets {
		seen.Sets[name] = map[string]bool{}
		for e := range set {
			seen.Sets[name][e] = true
		}
	}
	if d := cmp.Diff(l.list("inet "+plan.GuardTable), seen); d != "" {
		l.t.Errorf("%s (-nft +seen)\n%s", what, d)
	}
	macs := map[netip.Addr]string{}
	for name, set := range l.list("netdev " + plan.NeighbourTable).Sets {
		for e := range set {
			key, mac, _ := strings.Cut(e, " : ")
			ip, err := plan.ParseNeighbour(key)
			if err != nil {
				l.t.Fatalf("%s: %s: %v", name, e, err)
			}
			macs[ip] = mac
		}
	}
	if d := cmp.Diff(macs, state.Neighbours.MACs, cmpopts.EquateComparable(netip.Addr{})); d != "" || len(macs) == 0 {
		l.t.Errorf("%s: neighbours (-nft +seen)\n%s", what, d)
	}
}

// TestTablesAreReadAsListed: what is read over netlink is what the program nft
// lists, in both families, of what the agent has written, over netlink and by nft,
// and of what somebody else has added.
func TestTablesAreReadAsListed(t *testing.T) {
	l := newLab(t, "iptables-nft")
	in := l.dual("iptables-nft")
	for i := 1; i <= 600; i++ { // elements of several messages
		n := numbered(i+0x400, fmt.Sprintf("ns-%d", i), fmt.Sprintf("192.168.%d.%d", 100+i/250, i%250+1), fmt.Sprintf("192.168.%d.%d", 10+i/250, i%250+1))
		n.GatewayIPs = append(n.GatewayIPs, netip.MustParseAddr(fmt.Sprintf("fd00:99::1:%x", i)))
		n.EgressIPs = append(n.EgressIPs, netip.MustParseAddr(fmt.Sprintf("fd00:55::1:%x", i)), netip.MustParseAddr(fmt.Sprintf("192.168.%d.%d", 20+i/250, i%250+1)))
		in.Tenants = append(in.Tenants, n)
	}
	// One that ends where the next begins, the first and the last address there are, a single one.
	in.Networks[0].PodNetworks = append(in.Networks[0].PodNetworks, netip.MustParsePrefix("10.132.0.0/25"), netip.MustParsePrefix("172.30.0.7/32"),
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("255.255.255.0/24"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fd02::7/128"))
	l.serve(in)
	l.asListed("written by nft")
	all := in.Tenants
	in.Tenants = append(all[:1:1], all[3:]...)
	l.serve(in)
	in.Tenants = all
	l.serve(in)
	l.asListed("written over netlink")
	for _, foreign := range []string{
		`nft add element inet egw-guard pods4 '{ 100.64.0.5-100.64.0.9, 203.0.113.128/25, 198.51.100.7 }'`,
		`nft add element inet egw-guard pods6 '{ fd03::5-fd03::9, fd04::/127 }'`,
		`nft add element inet egw-guard owners4 '{ "enp1s0" . 0xfff00001 . 198.51.100.7 }'`,
		`nft add element inet egw-guard stale6 '{ 0 . 2001:db8::7, 1 . ::ffff:1.2.3.4 }'`,
		`nft add element inet egw-guard links4 '{ "a-name.of-15-ch" : 7 }'`,
		`nft add element inet egw-guard nodes4 '{ 198.51.100.8 comment "somebody else" }'`,
		`nft add rule inet egw-guard exit accept; nft add rule inet egw-guard input counter comment '"#"'`,
		`nft add set inet egw-guard other '{ type inet_service; }'`,
		`nft add table inet other '{ flags dormant; }'; nft add table ip egw-guard '{ flags dormant; }'`,
		`nft add element netdev egw-neigh link4 '{ 192.0.2.7 : 02:00:00:00:00:07 }'`,
	} {
		l.gw.Run(foreign)
		l.asListed(foreign)
	}
	if got := l.observe().Guard.Sets["!"]; got != nil {
		t.Error("the guard is taken for switched off, as others are")
	}
	l.serve(in)
	l.asListed("repaired")
}

// TestOddElementsGo: what somebody adds to the sets of the guard that no plan could
// write is found and goes, whatever it would do there, and a table that somebody
// switched off is on again.
func TestOddElementsGo(t *testing.T) {
	l := newLab(t, "iptables-nft")
	in := l.dual("iptables-nft")
	in.Tenants[0].GatewayIPs, in.Tenants[0].EgressIPs = addrs("192.168.99.13"), addrs(blue)
	l.pods()
	l.serve(in)
	before := l.gw.Run("nft -s list table inet egw-guard")
	file := filepath.Join(t.TempDir(), "table")
	const add = "nft add element inet egw-guard "
	for _, damage := range []string{
		add + `owners4 '{ "eg002" . 0x100000 . 192.168.55.113 }'`,
		add + `owners4 '{ * }'`,
		add + `owners4 '{ "1.2.3.4" . 0x1 . 192.168.55.113 }'`,
		add + `owners6 '{ "0x7" . 0x1 . fd00:55::113 }'`,
		add + `links4 '{ "0x7" : 0x1 }'`,
		add + `translate4 '{ * : 192.168.55.114 }'`,
		"nft add table inet egw-guard '{ flags dormant; }'",
		"nft add table netdev egw-neigh '{ flags dormant; }'",
		add + `pods4 '{ 100.64.0.5-100.64.0.9 }'`,
		add + `pods6 '{ fd03::5-fd03::9 }'`,
		"nft add set inet egw-guard other '{ type mark; }'",
		// The same rules and elements, but what comes into a map that is empty so far goes after an hour.
		"nft -s list table inet egw-guard | sed '/map links6/,/}/ s/type ifname : mark/& ; flags timeout ; timeout 1h/' > " + file + "; nft delete table inet egw-guard; nft -f " + file,
	} {
		l.gw.Run(damage)
		steps := l.serve(in)
		if len(steps) == 0 {
			t.Errorf("%s: nothing was repaired", damage)
		}
		if d := cmp.Diff(strings.Split(before, "\n"), strings.Split(l.gw.Run("nft -s list table inet egw-guard"), "\n"), cmpopts.SortSlices(func(a, b string) bool { return a < b })); d != "" {
			t.Errorf("%s: (-before +repaired)\n%s", damage, d)
		}
		if got := l.node1.Seen("udp", "10.128.0.10", server); got != blue {
			t.Errorf("%s: the server saw %s", damage, got)
		}
	}
	l.clean(blue, red)
}
