// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"egress-gateway.io/test/lab"
)

// disturbance is something that a driver can do.
type disturbance struct {
	name   string
	weight int
	do     func(ctx context.Context) error
}

// driver draws disturbances, one after the other, from its own source of random
// numbers: what it does depends on the seed alone, when it does on the machine.
type driver struct {
	*world
	random   *rand.Rand
	shortest time.Duration
	longest  time.Duration
	list     []disturbance
}

const byHand = "something is deleted by hand"

// disturb runs one driver for the cluster and one for the gateway, side by side.
// Within each of them there is one thing broken at a time.
func (w *world) disturb(ctx context.Context) error {
	c := &clusterDriver{driver: driver{world: w, random: rand.New(rand.NewPCG(w.opts.Seed, 1)), shortest: 30 * time.Millisecond, longest: 500 * time.Millisecond}}
	c.list = []disturbance{
		{"a tenant comes or goes", 40, c.toggle},
		{"fifteen tenants come or go at once", 3, c.burst},
		{"an address moves to another tenant", 25, c.handOver},
		{"two tenants ask for each other's address", 5, c.exchange},
		{"a tenant moves to another address", 15, c.move},
		{"a node joins or leaves", 3, c.node},
		{"cluster-agent is killed", 3, c.killClusterAgent},
		{"the API server is away", 1, c.killAPIServer},
	}
	g := &gatewayDriver{driver: driver{world: w, random: rand.New(rand.NewPCG(w.opts.Seed, 2)), shortest: 50 * time.Millisecond, longest: 900 * time.Millisecond}}
	g.list = []disturbance{
		{"gateway-agent is killed", 10, g.killAgent},
		{"neighbour entries go stale and heal", 12, g.stale},
		{byHand, 14, g.damage},
		{"NATS is away", 2, g.killNATS},
	}
	if w.opts.WithoutGuards { // which are not healed meanwhile
		g.list = slices.DeleteFunc(g.list, func(d disturbance) bool { return d.name == byHand })
	}
	end, cancel := context.WithTimeout(ctx, w.opts.Duration)
	defer cancel()
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return errors.Join(c.drive(ctx, end), c.restore(ctx)) })
	all.Go(func() error { return g.drive(ctx, end) })
	if w.opts.WithoutGuards {
		all.Go(func() error { return w.holdGuardsOpen(end) })
	}
	return all.Wait()
}

// drive works until end. What it has begun it completes, so that nothing is
// left broken.
func (d *driver) drive(ctx, end context.Context) error {
	total := 0
	for _, x := range d.list {
		total += x.weight
	}
	for {
		pause(end, d.shortest+time.Duration(d.random.Int64N(int64(d.longest-d.shortest))))
		if end.Err() != nil {
			return ctx.Err()
		}
		n := d.random.IntN(total)
		for _, x := range d.list {
			if n -= x.weight; n < 0 {
				d.count(x.name)
				d.trace("%s", x.name)
				if err := x.do(ctx); err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
				break
			}
		}
	}
}

// between draws a time.
func (d *driver) between(low, high time.Duration) time.Duration {
	return low + time.Duration(d.random.Int64N(int64(high-low)))
}

// clusterDriver does what users, nodes and the control plane do.
type clusterDriver struct {
	driver
	third *joined
	joins int
}

// joined is a node that is there for a while.
type joined struct {
	name string
	stop context.CancelFunc
	done chan error
}

// some draws a tenant that is present, or one that is not, among those that are
// not steady. There may be none.
func (c *clusterDriver) some(present bool) *member {
	var list []*member
	for _, m := range c.members {
		if !m.steady() && m.present == present {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return list[c.random.IntN(len(list))]
}

// toggle lets a tenant come or go. About one in eight is away at any time.
func (c *clusterDriver) toggle(ctx context.Context) error {
	away := 0
	for _, m := range c.members {
		if !m.present {
			away++
		}
	}
	if comes := c.random.IntN(len(c.members)/4) < away; comes {
		return c.come(ctx, c.some(false))
	}
	return c.goAway(ctx, c.some(true))
}

func (c *clusterDriver) come(ctx context.Context, m *member) error {
	if m == nil {
		return nil
	}
	if m.annotated {
		if err := c.ask(ctx, m, ""); err != nil {
			return err
		}
	}
	m.present = true
	c.trace("label %s", m.name)
	return c.Label(ctx, m.name, m.pool())
}

func (c *clusterDriver) goAway(ctx context.Context, m *member) error {
	if m == nil {
		return nil
	}
	m.present = false
	c.trace("unlabel %s", m.name)
	return c.Unlabel(ctx, m.name)
}

func (c *clusterDriver) ask(ctx context.Context, m *member, addresses string) error {
	m.annotated = addresses != ""
	c.trace("%s asks for %q", m.name, addresses)
	return c.Annotate(ctx, m.name, addresses)
}

func (c *clusterDriver) burst(ctx context.Context) error {
	for range 15 {
		if err := c.toggle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// pair draws two tenants that are present, and what they have.
func (c *clusterDriver) pair() (a, b *member, ofA, ofB string, ok bool) {
	a, b = c.some(true), c.some(true)
	if a == nil || a == b {
		return nil, nil, "", "", false
	}
	x, okA := c.watcher.tenant(a.name)
	y, okB := c.watcher.tenant(b.name)
	if !okA || !okB || len(x.Spec.EgressIPs) == 0 || len(y.Spec.EgressIPs) == 0 {
		return nil, nil, "", "", false
	}
	return a, b, join(x.Spec.EgressIPs), join(y.Spec.EgressIPs), true
}

// handOver lets a tenant go whose addresses another one is waiting for.
func (c *clusterDriver) handOver(ctx context.Context) error {
	from, to, addresses, _, ok := c.pair()
	if !ok {
		return nil
	}
	if c.random.IntN(2) == 0 {
		return errors.Join(c.ask(ctx, to, addresses), c.goAway(ctx, from))
	}
	return errors.Join(c.goAway(ctx, from), c.ask(ctx, to, addresses))
}

// exchange has two tenants ask for what the other one has: neither may lose its
// own before it gets the other's.
func (c *clusterDriver) exchange(ctx context.Context) error {
	a, b, ofA, ofB, ok := c.pair()
	if !ok {
		return nil
	}
	return errors.Join(c.ask(ctx, a, ofB), c.ask(ctx, b, ofA))
}

// move asks for an address that may be free or not, or for any.
func (c *clusterDriver) move(ctx context.Context) error {
	m := c.some(true)
	if m == nil {
		return nil
	}
	if m.annotated && c.random.IntN(2) == 0 {
		return c.ask(ctx, m, "")
	}
	// Of the family that is not named the tenant keeps what it has.
	bases := [][]string{{churnBase}, {churnBase6}, {churnBase, churnBase6}}[c.random.IntN(3)]
	var list []string
	for _, base := range bases {
		list = append(list, nth(base, c.opts.Tenants+c.random.IntN(spare)))
	}
	return c.ask(ctx, m, join(list))
}

// node lets a third node come, with pods of some tenants, or go.
func (c *clusterDriver) node(ctx context.Context) error {
	if c.third != nil {
		return c.restore(ctx)
	}
	const pods = 20
	// Each time another one, with pod addresses that were never used: after an
	// outage of the API server the stand-in for OVN, which is one for all nodes,
	// still knows the pods of the node before, and would give their routes to
	// whoever has their addresses. OVN on a new node knows no pods of the past.
	c.joins++
	i := 1 + c.joins
	spec := lab.NodeSpec{Name: fmt.Sprintf("node%d", i+1),
		Subnet:  netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/23", 128+2*i/256, 2*i%256)),
		Subnet6: netip.MustParsePrefix(fmt.Sprintf("fd01:0:0:%x::/64", i+1))}
	name := spec.Name
	if _, err := c.AddNode(ctx, spec); err != nil {
		return err
	}
	var list []speaker
	for range pods {
		m := c.members[c.random.IntN(len(c.members))]
		p, err := c.AddPod(ctx, name, m.name, lab.SharedNetwork())
		if err != nil {
			return err
		}
		list = append(list, voices(m, p)...)
	}
	sending, stop := context.WithCancel(ctx)
	c.third = &joined{name, stop, startSender(sending, c.Lab, name, list, c.random.Uint64())}
	return nil
}

// restore takes the third node away, if it is there.
func (c *clusterDriver) restore(ctx context.Context) error {
	if c.third == nil {
		return nil
	}
	c.third.stop()
	err, name := <-c.third.done, c.third.name
	c.third = nil
	return errors.Join(err, c.RemoveNode(ctx, name))
}

func (c *clusterDriver) killClusterAgent(ctx context.Context) error {
	if err := c.Process("cluster-agent").Kill(); err != nil {
		return err
	}
	pause(ctx, c.between(0, 2*time.Second))
	return c.startClusterAgent()
}

func (c *clusterDriver) killAPIServer(ctx context.Context) error {
	if err := c.KillAPIServer(); err != nil {
		return err
	}
	pause(ctx, c.between(time.Second, 5*time.Second))
	return c.StartAPIServer(ctx)
}
