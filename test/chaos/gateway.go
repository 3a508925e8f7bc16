// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// gatewayDriver does what happens on the gateway VM, and between it and the
// nodes.
type gatewayDriver struct{ driver }

func (g *gatewayDriver) killAgent(ctx context.Context) error {
	if err := g.Process(lab.GatewayAgentName).Kill(); err != nil {
		return err
	}
	if g.random.IntN(2) == 0 {
		pause(ctx, g.between(0, 2*time.Second))
	}
	return g.startGatewayAgent(ctx)
}

func (g *gatewayDriver) killNATS(ctx context.Context) error {
	if err := g.KillNATS(); err != nil {
		return err
	}
	pause(ctx, g.between(500*time.Millisecond, 4*time.Second))
	return g.StartNATS(ctx)
}

// stale makes nodes send packets of some tenants to the VM's own NIC for a
// while, past the tenants' links; those of tenants without long flows also to
// where nobody is.
func (g *gatewayDriver) stale(ctx context.Context) error {
	own, err := g.LinkMAC(lab.PartGateway, "enp1s0")
	if err != nil {
		return err
	}
	nobody := net.HardwareAddr{0x02, 0, 0, 0, 0xde, 0xad}
	var heal []func() error
	for range 1 + g.random.IntN(6) {
		m, node := g.members[g.random.IntN(len(g.members))], []string{"node1", "node2"}[g.random.IntN(2)]
		mac := own
		if g.random.IntN(4) == 0 && !m.steady() {
			mac = nobody
		}
		t, ok := g.watcher.tenant(m.name)
		ip := []netip.Addr{t.GatewayIP(), t.GatewayIP6()}[g.random.IntN(2)]
		if !ok || !ip.IsValid() {
			continue
		}
		if err := g.PoisonNeighbour(node, ip, mac); err != nil {
			return err
		}
		heal = append(heal, func() error { return g.HealNeighbour(node, ip) })
	}
	pause(ctx, g.between(100*time.Millisecond, 2*time.Second))
	for _, f := range heal {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// damage deletes something that is the agent's, and waits until it is healed.
func (g *gatewayDriver) damage(ctx context.Context) error {
	d, err := g.drawDamage()
	if err != nil || d.command == "" {
		return err
	}
	g.count("  " + d.what)
	g.trace("%s", d.command)
	before, err := g.listed(d)
	if err != nil {
		return err
	}
	began := time.Now()
	if out, err := g.RunInGateway("sh", "-c", d.command); err != nil && !d.mayFail {
		return fmt.Errorf("%s: %w: %s", d.command, err, out)
	}
	// The pass that is under way may have looked before; the next one has not.
	err = g.passes(ctx, 2)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, settle)
		defer cancel()
		err = scenario.Until(limited, "it to be back", func(context.Context) (bool, error) { return g.healed(d, before) })
	}
	if err != nil {
		g.fault("%s was not healed: %v", d.command, err)
		return nil
	}
	if d.interrupts {
		g.mu.Lock()
		g.excuses = append(g.excuses, excuse{d.what, began, time.Now()})
		g.mu.Unlock()
	}
	return nil
}

// listed is what d shows.
func (g *gatewayDriver) listed(d damage) (string, error) {
	if d.show == "" {
		return "", nil
	}
	out, err := g.RunInGateway("sh", "-c", d.show)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", d.show, err, out)
	}
	return out, nil
}

// healed tells whether all is as it was before d, or why not.
func (g *gatewayDriver) healed(d damage, before string) (bool, error) {
	now, err := g.listed(d)
	if err != nil {
		return false, err
	}
	if now != before {
		return false, fmt.Errorf("%s shows\n%s\nand showed before\n%s", d.show, now, before)
	}
	if d.healed == "" {
		return true, nil
	}
	if out, err := g.RunInGateway("sh", "-c", d.healed); err != nil {
		return false, fmt.Errorf("%w: %s", err, out)
	}
	return true, nil
}

// passes waits until the agent has completed n more passes.
func (g *gatewayDriver) passes(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	began := -1
	return scenario.Until(ctx, fmt.Sprintf("%d passes of gateway-agent", n), func(ctx context.Context) (bool, error) {
		page, err := g.HTTPGet(ctx, lab.PartGateway, "http://127.0.0.1:9809/metrics")
		if err != nil {
			return false, err
		}
		sum := 0
		for line := range strings.Lines(page) {
			if strings.HasPrefix(line, "egress_reconcile_passes_total{") {
				var v float64
				if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
					return false, err
				}
				sum += int(v)
			}
		}
		if began < 0 {
			began = sum
		}
		return sum >= began+n, nil
	})
}
