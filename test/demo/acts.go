// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// limit is how long the demo waits for anything before it says that it failed.
const limit = 30 * time.Second

type demo struct {
	*story
	w       *scenario.World
	capture *lab.Capture
	tenants map[string]scenario.Tenant
	pods    []*lab.Pod
	used    []netip.Addr // every egress IP that was allowed on the wire
}

var namespaces = []string{"ns-blue", "ns-red"}

func (d *demo) agents(ctx context.Context) error {
	for _, ns := range namespaces {
		pods, err := d.w.Populate(ctx, []string{ns}, 1)
		if err != nil {
			return err
		}
		d.pods = append(d.pods, pods...)
	}
	var err error
	if d.capture, err = d.w.CaptureExternal(); err != nil {
		return err
	}
	d.begin("the agents")
	d.text("cluster-agent starts in the cluster, gateway-agent on the VM. A capture on the external wire runs from now on.")
	if err := d.w.StartAgents(ctx); err != nil {
		return err
	}
	p := d.pods[0]
	try, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if source, err := scenario.SeenAs(try, p); err == nil {
		return fmt.Errorf("pod %s has no tenant yet, and was seen outside as %s", p, source)
	}
	d.holds("without a label a pod of %s reaches nothing outside", p.Namespace)
	return nil
}

func (d *demo) pool(ctx context.Context) error {
	d.begin("a pool of addresses (the cluster's administrator)")
	p := scenario.DemoPool()
	text, err := yaml.Marshal(p.Object())
	if err != nil {
		return err
	}
	d.command("kubectl apply -f - <<EOF", string(text)+"EOF")
	return d.w.CreatePool(ctx, p)
}

func (d *demo) label(ctx context.Context) error {
	d.begin("a label (the namespace's owner)")
	d.tenants = map[string]scenario.Tenant{}
	for _, ns := range namespaces {
		d.command("kubectl label namespace "+ns+" "+scenario.LabelPool+"=public", "")
		start := time.Now()
		if err := d.w.Label(ctx, ns, "public"); err != nil {
			return err
		}
		t, err := d.w.WaitReady(ctx, ns, limit)
		if err != nil {
			return err
		}
		d.tenants[ns] = t
		d.used = append(d.used, t.EgressIP())
		d.text("namespace/%s labeled; Ready after %s", ns, time.Since(start).Round(time.Millisecond))
	}
	table, err := d.w.Table(ctx, scenario.Tenants)
	if err != nil {
		return err
	}
	d.command("kubectl get egresstenants", table)
	if d.tenants["ns-blue"].EgressIP() == d.tenants["ns-red"].EgressIP() {
		return errors.New("both tenants have the same egress IP")
	}
	d.holds("each namespace has an egress IP of its own: %s and %s", d.tenants["ns-blue"].EgressIP(), d.tenants["ns-red"].EgressIP())
	return nil
}

func (d *demo) route(ctx context.Context) error {
	d.begin("the route that OVN gets: an AdminPolicyBasedExternalRoute")
	for _, ns := range namespaces {
		hops, status, found, err := d.w.Route(ctx, ns)
		if err != nil {
			return err
		}
		want := []string{d.tenants[ns].GatewayIP().String()}
		if !found || !slices.Equal(hops, want) || status != "Success" {
			return fmt.Errorf("the APB of %s has next hops %v, status %q; want %v, Success", ns, hops, status, want)
		}
		d.text("egress-%-8s from %-8s next hop %s   status %s", ns, ns, hops[0], status)
	}
	d.holds("every node routes each namespace to its own gateway IP")
	return nil
}

func (d *demo) kernel(context.Context) error {
	d.begin("what the gateway VM's kernel holds")
	out, err := d.w.GatewayCommand("status")
	if err != nil {
		return err
	}
	d.command("gateway-agent status", out)
	for _, ns := range namespaces {
		for _, a := range []netip.Addr{d.tenants[ns].EgressIP(), d.tenants[ns].GatewayIP()} {
			if !strings.Contains(out, a.String()) {
				return fmt.Errorf("status does not show %s of %s", a, ns)
			}
		}
	}
	return nil
}

func (d *demo) requests(ctx context.Context) error {
	d.begin("requests from pods on both nodes, and what the partner sees")
	for _, p := range d.pods {
		if err := d.request(ctx, p); err != nil {
			return err
		}
	}
	d.holds("%d pods on %d nodes are seen with their tenant's egress IP", len(d.pods), len(d.w.Nodes()))
	return nil
}

// request asks the outside server from a pod, and checks the answer.
func (d *demo) request(ctx context.Context, p *lab.Pod) error {
	want := d.tenants[p.Namespace].EgressIP()
	if err := scenario.WaitSeenAs(ctx, p, want, limit); err != nil {
		return err
	}
	d.command(fmt.Sprintf("kubectl exec -n %s %s -- curl -s %s    # %s on %s", p.Namespace, p.Name, lab.ServerURL, p.Address, p.Node), want.String())
	return nil
}
