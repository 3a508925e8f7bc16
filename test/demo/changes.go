// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

func (d *demo) nodes(ctx context.Context) error {
	d.begin("a node joins, and leaves")
	start := time.Now()
	n, err := d.w.AddNode(ctx, lab.NodeSpec{Name: "node3"})
	if err != nil {
		return err
	}
	took, err := d.awaitRoute(ctx, start, n.Subnet, n.Address)
	if err != nil {
		return err
	}
	d.text("node3 joined with pods in %s; the gateway's return route via %s stood %s later", n.Subnet, n.Address, took)
	p, err := d.w.AddPod(ctx, "node3", "ns-blue")
	if err != nil {
		return err
	}
	if err := d.request(ctx, p); err != nil {
		return err
	}
	start = time.Now()
	if err := d.w.RemoveNode(ctx, "node3"); err != nil {
		return err
	}
	if took, err = d.awaitRoute(ctx, start, n.Subnet, netip.Addr{}); err != nil {
		return err
	}
	d.text("node3 left; its route was gone %s later", took)
	d.holds("return routes follow the nodes")
	return nil
}

// awaitRoute waits until the gateway has this next hop for a subnet; an
// invalid one means no route.
func (d *demo) awaitRoute(ctx context.Context, start time.Time, subnet netip.Prefix, via netip.Addr) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := scenario.Until(ctx, "the gateway's route to "+subnet.String(), func(context.Context) (bool, error) {
		s, err := d.w.Gateway()
		if !via.IsValid() {
			return !strings.Contains(s.Routes, subnet.String()), err
		}
		return strings.Contains(s.Routes, subnet.String()+" via "+via.String()), err
	})
	return time.Since(start).Round(time.Millisecond), err
}

func (d *demo) release(ctx context.Context) error {
	d.begin("a tenant is released")
	blue := d.tenants["ns-blue"]
	start := time.Now()
	d.command("kubectl label namespace ns-blue "+scenario.LabelPool+"-", "")
	if err := d.w.Unlabel(ctx, "ns-blue"); err != nil {
		return err
	}
	if err := d.w.WaitGone(ctx, "ns-blue", limit); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := scenario.Until(wait, "the gateway to hold nothing of ns-blue", func(context.Context) (bool, error) {
		s, err := d.w.Gateway()
		if err != nil {
			return false, err
		}
		left := append(s.Mentions(blue.EgressIP().String()), s.Mentions(blue.GatewayIP().String())...)
		flows, err := d.w.Connections(blue.EgressIP())
		if left = append(left, flows...); len(left) > 0 {
			return false, fmt.Errorf("left: %s", strings.Join(left, "; "))
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	d.text("its route, link, addresses, rules and connections were gone %s later", time.Since(start).Round(time.Millisecond))
	for _, p := range d.pods {
		if p.Namespace != "ns-blue" {
			if err := d.request(ctx, p); err != nil {
				return err
			}
			continue
		}
		try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		source, err := scenario.SeenAs(try, p)
		cancel()
		if err == nil {
			return fmt.Errorf("pod %s of the released tenant was seen as %s", p, source)
		}
	}
	d.holds("a released tenant leaves nothing on the VM, and the other goes on")
	return nil
}

func (d *demo) audit(ctx context.Context) error {
	d.begin("the audit trail: who held which egress IP, when, and why")
	events, err := d.w.Audit(ctx)
	if err != nil {
		return err
	}
	kinds := map[string]bool{}
	for _, e := range events {
		kinds[e.Kind] = true
		d.text("%s  %-10s %-12s %s", e.Time.Local().Format("15:04:05.000"), e.Kind, e.Subject, scenario.Shorten(string(e.Data), 110))
	}
	for _, kind := range []string{"alloc", "release", "apb", "programmed", "removed"} {
		if !kinds[kind] {
			return fmt.Errorf("no event of kind %s among %d", kind, len(events))
		}
	}
	d.holds("%d events tell it, in the NATS stream EGRESS_AUDIT", len(events))
	return nil
}

// wire looks at all that left the VM.
func (d *demo) wire(context.Context) error {
	d.begin("the external wire, from the start to now")
	r, err := d.capture.Stop()
	if err != nil {
		return err
	}
	for source, n := range r.BySource {
		d.text("%5d packets from %s", n, source)
	}
	if problems := r.Problems(d.used...); len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n"))
	}
	if r.Packets == 0 {
		return errors.New("the capture saw nothing at all")
	}
	d.holds("%d packets left the gateway VM, 0 of them with a source that is no tenant's egress IP", r.Packets)
	return nil
}
