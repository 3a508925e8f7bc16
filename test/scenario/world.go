// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"egress-gateway.io/test/lab"
)

// World is a lab with both agents running in it, as a small installation would
// have them, and a user's view of its cluster.
type World struct {
	*lab.Lab
	*Cluster
}

// WorldOptions say how to build a World.
type WorldOptions struct {
	Name   string
	Dir    string
	BinDir string
	Root   string // the checkout, for deploy/crds
	Log    io.Writer
	// NodeDefaultViaGateway sends what no policy covers to the gateway VM's
	// own address, where a leak would show.
	NodeDefaultViaGateway bool
	// DualStack gives the lab its IPv6 plane.
	DualStack bool
	// NATS says where the NATS servers are.
	NATS lab.NATS
	// Detach lets the lab outlive the program.
	Detach bool
}

// NewWorld brings up a lab, with the product's CRDs, but no agent yet.
func NewWorld(ctx context.Context, o WorldOptions) (*World, error) {
	l, err := lab.Up(ctx, lab.Options{
		Name: o.Name, Dir: o.Dir, BinDir: o.BinDir, Log: o.Log,
		Manifests:             []string{o.Root + "/deploy/crds"},
		NodeDefaultViaGateway: o.NodeDefaultViaGateway,
		DualStack:             o.DualStack,
		NATS:                  o.NATS,
		Detach:                o.Detach,
	})
	if err != nil {
		return nil, err
	}
	c, err := Connect(l.RESTConfig())
	if err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return &World{Lab: l, Cluster: c}, nil
}

// StartAgents starts a cluster-agent and the gateway-agent.
func (w *World) StartAgents(ctx context.Context) error {
	if _, err := w.StartClusterAgent("cluster-agent", nil); err != nil {
		return err
	}
	_, err := w.StartGatewayAgent(ctx, nil)
	return err
}

// DemoPool is the pool that small scenarios use.
func DemoPool() Pool {
	return Pool{Name: "public",
		EgressRanges:  []string{"192.168.55.113-192.168.55.120"},
		GatewayRanges: []string{"192.168.99.13-192.168.99.20"}}
}

// DualPool is DemoPool with a range of each family.
func DualPool() Pool {
	p := DemoPool()
	p.EgressRanges = append(p.EgressRanges, "2001:db8:55::113-2001:db8:55::120")
	p.GatewayRanges = append(p.GatewayRanges, "fd00:99::13-fd00:99::20")
	return p
}

// LargeDualPool is LargePool with room for n tenants in each family.
func LargeDualPool(name string, n int) Pool {
	p := LargePool(name, n)
	p.EgressRanges = append(p.EgressRanges, fmt.Sprintf("2001:db8:55::1:0-2001:db8:55::1:%x", n-1))
	p.GatewayRanges = append(p.GatewayRanges, fmt.Sprintf("fd00:99::1:0-fd00:99::1:%x", n-1))
	return p
}

// LargePool has room for n tenants, out of the way of the lab's machines.
func LargePool(name string, n int) Pool {
	return Pool{Name: name,
		EgressRanges:  []string{ipRange("192.168.16.1", n)},
		GatewayRanges: []string{ipRange("192.168.104.1", n)}}
}

func ipRange(from string, n int) string {
	first := netip.MustParseAddr(from)
	b := first.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n) - 1
	last := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	return first.String() + "-" + last.String()
}

// SeenAs asks the outside server which source it sees of a pod, over a new TCP
// connection. It makes no second attempt.
func SeenAs(ctx context.Context, p *lab.Pod) (netip.Addr, error) {
	return seenAt(ctx, p, lab.ServerURL)
}

// SeenAs6 is SeenAs over IPv6.
func SeenAs6(ctx context.Context, p *lab.Pod) (netip.Addr, error) {
	return seenAt(ctx, p, lab.ServerURL6)
}

func seenAt(ctx context.Context, p *lab.Pod, url string) (netip.Addr, error) {
	body, err := p.HTTPGet(ctx, url)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(body)
}

// WaitSeenAs asks until the server answers, over want's family and at most for
// limit, and fails if an answer ever names another source than want. A refused connection is asked
// again: closed is right, wrong is not.
func WaitSeenAs(ctx context.Context, p *lab.Pod, want netip.Addr, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	wrong, ask := netip.Addr{}, SeenAs
	if want.Is6() {
		ask = SeenAs6
	}
	err := Until(ctx, fmt.Sprintf("pod %s to be seen as %s", p, want), func(ctx context.Context) (bool, error) {
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		got, err := ask(try, p)
		if err == nil && got != want {
			wrong = got
			return true, nil
		}
		return err == nil, err
	})
	if wrong.IsValid() {
		return fmt.Errorf("pod %s was seen as %s, its tenant's egress IP is %s", p, wrong, want)
	}
	return err
}

// GatewayState is what the gateway VM's kernel holds, as its own tools print
// it. It is for a look from outside: no code of the product is asked.
type GatewayState struct {
	Links, Addresses, Routes, Rules, Rules6, Guard string
}

// Gateway reads the state of the gateway VM's kernel.
func (w *World) Gateway() (GatewayState, error) {
	var s GatewayState
	for _, q := range []struct {
		into *string
		argv []string
	}{
		{&s.Links, []string{"ip", "-o", "-d", "link", "show", "type", "macvlan"}},
		{&s.Addresses, []string{"ip", "-o", "addr"}},
		{&s.Routes, []string{"sh", "-c", "ip route show proto 97; ip -6 route show proto 97"}},
		{&s.Rules, []string{"iptables-save"}},
		{&s.Rules6, []string{"ip6tables-save"}},
		{&s.Guard, []string{"nft", "list", "ruleset"}},
	} {
		out, err := w.RunInGateway(q.argv...)
		if err != nil {
			return s, fmt.Errorf("%s: %w: %s", strings.Join(q.argv, " "), err, out)
		}
		*q.into = out
	}
	return s, nil
}

// Mentions returns where in the state an address or a name stands.
func (s GatewayState) Mentions(what string) []string {
	var where []string
	for _, part := range []struct{ name, text string }{
		{"links", s.Links}, {"addresses", s.Addresses}, {"routes", s.Routes}, {"iptables", s.Rules}, {"ip6tables", s.Rules6}, {"nftables", s.Guard},
	} {
		for line := range strings.Lines(part.text) {
			if mentions(line, what) {
				where = append(where, part.name+": "+strings.TrimSpace(line))
			}
		}
	}
	return where
}

// mentions looks for a whole address or name: 192.168.55.11 is not in
// 192.168.55.113.
func mentions(line, what string) bool {
	for rest := line; ; {
		i := strings.Index(rest, what)
		if i < 0 {
			return false
		}
		before, after := rest[:i], rest[i+len(what):]
		if (before == "" || !word(before[len(before)-1])) && (after == "" || !word(after[0])) {
			return true
		}
		rest = after
	}
}

func word(c byte) bool {
	return c == '.' || c == '-' || c == ':' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z'
}

// Connections returns the conntrack entries of the gateway VM that mention an
// address.
func (w *World) Connections(addr netip.Addr) ([]string, error) {
	family := "ipv4"
	if addr.Is6() {
		family = "ipv6"
	}
	out, err := w.RunInGateway("conntrack", "-f", family, "-L")
	if err != nil {
		return nil, fmt.Errorf("conntrack -L: %w: %s", err, out)
	}
	var found []string
	for line := range strings.Lines(out) {
		if mentions(line, addr.String()) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found, nil
}
