// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
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
			to := w.address(m, p).to.String()
			// The route of a pod may lag behind the tenant's condition.
			if err := w.awaitAnswer(ctx, m, i); err != nil {
				return nil, err
			}
			udp, err := p.DialUDP(to)
			if err != nil {
				return nil, err
			}
			tcp, err := p.DialTCP(ctx, to)
			if err != nil {
				return nil, err
			}
			name := fmt.Sprintf("of %s on %s", m.name, p.Node)
			flows = append(flows,
				longFlow{name: "UDP " + name, flow: scenario.StartUDP(ctx, udp, longInterval)},
				longFlow{name: "TCP " + name, tcp: true, flow: scenario.StartTCP(ctx, tcp, longInterval)})
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

// awaitAnswer asks the tenant's port of the outside server from one of its pods
// until there is an answer, which has to name the tenant's egress IP.
func (w *world) awaitAnswer(ctx context.Context, m *member, pod int) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	asked := 0
	return scenario.Until(ctx, fmt.Sprintf("an answer to %s", m.pods[pod]), func(ctx context.Context) (bool, error) {
		c, err := m.pods[pod].DialUDP(w.address(m, m.pods[pod]).to.String())
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
		if source.Addr() != t.EgressIP() {
			return false, fmt.Errorf("seen as %s, want %s", source.Addr(), t.EgressIP())
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
	owner := map[netip.Addr]string{}
	for i, m := range w.members {
		if !m.present {
			continue
		}
		if err := w.awaitAnswer(ctx, m, i%len(m.pods)); err != nil {
			w.fault("%v", err)
		}
		t, _, err := w.Tenant(ctx, m.name)
		if err != nil {
			return err
		}
		if other := owner[t.EgressIP()]; other != "" {
			w.fault("%s and %s both have %s", other, m.name, t.EgressIP())
		}
		owner[t.EgressIP()] = m.name
	}
	w.leftovers(len(owner))
	return w.leftConnections(ctx)
}

var connection = regexp.MustCompile(`dport=(\d+) .*?dst=(\S+) `)

// leftConnections notes connections that the gateway still tracks for a tenant
// that has lost the address which they leave with.
func (w *world) leftConnections(ctx context.Context) error {
	tenants, err := w.ListTenants(ctx)
	if err != nil {
		return err
	}
	out, err := w.RunInGateway("conntrack", "-L")
	if err != nil {
		return err
	}
	var left []string
	for line := range strings.Lines(out) {
		found := connection.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		port, err := strconv.Atoi(found[1])
		if n := port - firstPort; err == nil && n >= 0 && n < len(w.members) && found[2] != tenants[memberName(n)].EgressIP().String() &&
			!w.members[n].pods[0].Address.Is6() && !strings.HasPrefix(found[2], "10.") {
			left = append(left, strings.TrimSpace(line))
		}
	}
	if len(left) > 0 {
		w.fault("%d connections of tenants that have lost their address are left, such as\n%s", len(left), strings.Join(left[:min(len(left), 10)], "\n"))
	}
	return nil
}

// leftovers notes tenant links on the gateway that belong to nobody.
func (w *world) leftovers(tenants int) {
	state, err := w.Gateway()
	if err != nil {
		w.fault("look at the gateway: %v", err)
		return
	}
	if links := lines(state.Links); links != tenants {
		w.fault("the gateway has %d tenant links for %d tenants", links, tenants)
	}
}
