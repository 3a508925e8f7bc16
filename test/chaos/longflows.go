// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// longFlow is a flow of a tenant that nobody touches.
type longFlow struct {
	name   string
	tcp    bool
	flow   *scenario.Flow
	result scenario.FlowResult
}

// startLongFlows starts a UDP and a TCP flow of some steady tenants on each
// node, and waits until all of them get answers.
func (w *world) startLongFlows(ctx context.Context) ([]longFlow, error) {
	var flows []longFlow
	for _, m := range w.members[:longFlowsOf] {
		for i, p := range m.pods {
			// The route of a pod may lag behind the tenant's condition.
			if err := w.awaitAnswers(ctx, m, i); err != nil {
				return nil, err
			}
			for _, v := range voices(m, p) {
				udp, err := p.DialUDP(v.to.String())
				if err != nil {
					return nil, err
				}
				tcp, err := p.DialTCP(ctx, v.to.String())
				if err != nil {
					return nil, err
				}
				name := fmt.Sprintf("of %s on %s to %s", m.name, p.Node, v.to)
				flows = append(flows,
					longFlow{name: "UDP " + name, flow: scenario.StartUDP(ctx, udp, longInterval)},
					longFlow{name: "TCP " + name, tcp: true, flow: scenario.StartTCP(ctx, tcp, longInterval)})
			}
		}
	}
	for _, f := range flows {
		limited, cancel := context.WithTimeout(ctx, settle)
		err := f.flow.WaitAnswers(limited, 10)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return flows, nil
}

// awaitAnswers asks the tenant's port of the outside server from one of its pods,
// over each family, until there is an answer that names the tenant's egress IP.
func (w *world) awaitAnswers(ctx context.Context, m *member, pod int) error {
	for _, v := range voices(m, m.pods[pod]) {
		if err := w.awaitAnswer(ctx, m, m.pods[pod], v); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) awaitAnswer(ctx context.Context, m *member, p *lab.Pod, v speaker) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	asked := 0
	return scenario.Until(ctx, fmt.Sprintf("an answer from %s to %s", v.to, p), func(ctx context.Context) (bool, error) {
		c, err := p.DialUDP(v.to.String())
		if err != nil {
			return false, err
		}
		defer c.Close()
		try, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		asked++
		source, err := lab.Ask(try, c, fmt.Sprintf("ask-%d", asked))
		if err != nil {
			return false, err
		}
		t, found, err := w.Tenant(ctx, m.name)
		if err != nil || !found {
			return false, err
		}
		if !slices.Contains(t.Addresses(), source.Addr()) {
			return false, fmt.Errorf("seen as %s, want one of %v", source.Addr(), t.Addresses())
		}
		return true, nil
	})
}

// settled ends all that the drivers may have left, waits until every tenant is
// served, and proves it from a pod of each.
func (w *world) settled(ctx context.Context) error {
	for _, m := range w.members {
		if m.annotated {
			if err := w.Annotate(ctx, m.name, ""); err != nil {
				return err
			}
		}
	}
	if err := w.allReady(ctx); err != nil {
		w.fault("%v", err)
		return nil
	}
	owner, present := map[netip.Addr]string{}, 0
	for i, m := range w.members {
		if !m.present {
			continue
		}
		if err := w.awaitAnswers(ctx, m, i%len(m.pods)); err != nil {
			w.fault("%v", err)
		}
		t, _, err := w.Tenant(ctx, m.name)
		if err != nil {
			return err
		}
		for _, a := range t.Addresses() {
			if other := owner[a]; other != "" {
				w.fault("%s and %s both have %s", other, m.name, a)
			}
			owner[a] = m.name
		}
		present++
	}
	w.nothingLeft(ctx, present)
	return nil
}

// nothingLeft waits until the gateway has nothing of tenants that left: one that
// left while NATS was away goes from the gateway when that is told.
func (w *world) nothingLeft(ctx context.Context, tenants int) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	began := time.Now()
	if err := scenario.Until(ctx, "nothing to be left of tenants that left", func(ctx context.Context) (bool, error) {
		err := errors.Join(w.leftovers(tenants), w.leftConnections(ctx))
		return err == nil, err
	}); err != nil {
		w.fault("%v", err)
		return
	}
	if took := time.Since(began); took > time.Second {
		w.say("nothing is left of tenants that left, after %s", took.Round(time.Millisecond))
	}
}

// ofPods tells the reply's destination of a connection that is not translated.
func ofPods(a netip.Addr) bool {
	return netip.MustParsePrefix(lab.PodNetworks).Contains(a) || netip.MustParsePrefix(lab.PodNetworks6).Contains(a)
}

var connection = regexp.MustCompile(`dport=(\d+) .*?dst=(\S+) `)

// leftConnections tells of connections that the gateway still tracks for a tenant
// that has lost the address which they leave with.
func (w *world) leftConnections(ctx context.Context) error {
	tenants, err := w.ListTenants(ctx)
	if err != nil {
		return err
	}
	out := ""
	for _, family := range []string{"ipv4", "ipv6"} {
		more, err := w.RunInGateway("conntrack", "-L", "-f", family)
		if err != nil {
			return err
		}
		out += more
	}
	var left []string
	for line := range strings.Lines(out) {
		found := connection.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		port, err := strconv.Atoi(found[1])
		back, err2 := netip.ParseAddr(found[2])
		if n := port - firstPort; err == nil && err2 == nil && n >= 0 && n < len(w.members) && !ofPods(back) &&
			!slices.Contains(tenants[memberName(n)].Addresses(), back) {
			left = append(left, strings.TrimSpace(line))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%d connections of tenants that have lost their address are left, such as\n%s", len(left), strings.Join(left[:min(len(left), 10)], "\n"))
	}
	return nil
}

// leftovers tells of tenant links on the gateway that belong to nobody.
func (w *world) leftovers(tenants int) error {
	state, err := w.Gateway()
	if err != nil {
		return fmt.Errorf("look at the gateway: %w", err)
	}
	if links := lines(state.Links); links != tenants {
		return fmt.Errorf("the gateway has %d tenant links for %d tenants", links, tenants)
	}
	return nil
}
