// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// Proof 1: label, be seen with the own address, unlabel, be gone.
func TestLabelToPacketAndBack(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	pods := map[string][]*lab.Pod{}
	for _, ns := range []string{"ns-blue", "ns-red"} {
		w.must(w.AddNamespace(w.ctx, ns))
		for _, node := range w.Nodes() {
			pods[ns] = append(pods[ns], w.pod(node, ns))
		}
	}
	blue, red := w.tenant("ns-blue", "public"), w.tenant("ns-red", "public")
	if blue.EgressIP() == red.EgressIP() || blue.GatewayIP() == red.GatewayIP() {
		t.Fatalf("two tenants share an address: %s; %s", blue.Why(), red.Why())
	}
	for _, p := range pods["ns-blue"] {
		w.seenAs(p, blue)
	}
	for _, p := range pods["ns-red"] {
		w.seenAs(p, red)
	}

	stays := w.udp(pods["ns-red"][0])
	ends := w.tcp(pods["ns-blue"][0])
	w.must(w.Unlabel(w.ctx, "ns-blue"))
	w.must(w.WaitGone(w.ctx, "ns-blue", soon))
	w.until("the APB of ns-blue to be gone", func() (bool, error) {
		_, _, found, err := w.Route(w.ctx, "ns-blue")
		return !found, err
	})
	w.gone(blue.EgressIP().String(), blue.GatewayIP().String(), "lab/ns-blue")
	ends.Stop() // it lost its way on purpose
	w.seenAs(pods["ns-red"][1], red)
	w.unharmed("the other tenant's flow", stays, red)

	t.Run("a new tenant does not get an address that rests", func(t *testing.T) {
		w.must(w.AddNamespace(w.ctx, "ns-green"))
		green := w.tenant("ns-green", "public")
		if green.EgressIP() == blue.EgressIP() || green.GatewayIP() == blue.GatewayIP() {
			t.Errorf("ns-green got %s by %s, which ns-blue has just released", green.EgressIP(), green.GatewayIP())
		}
	})
	t.Run("a tenant that returns gets its own address back", func(t *testing.T) {
		if again := w.tenant("ns-blue", "public"); again.EgressIP() != blue.EgressIP() {
			t.Errorf("ns-blue got %s, it had %s", again.EgressIP(), blue.EgressIP())
		}
		w.seenAs(pods["ns-blue"][0], blue)
	})
	t.Run("deleting the namespace releases", func(t *testing.T) {
		for _, p := range pods["ns-red"] {
			w.must(w.RemovePod(w.ctx, p)) // no kubelet here ends them
		}
		w.must(w.DeleteNamespace(w.ctx, "ns-red"))
		w.must(w.WaitGone(w.ctx, "ns-red", soon))
		w.gone(red.EgressIP().String(), red.GatewayIP().String(), "lab/ns-red")
	})
}

// Proof 2: forty tenants at once, each with its own address.
func TestFortyTenantsAtOnce(t *testing.T) {
	w := newWorld(t)
	const n = 40
	w.must(w.CreatePool(w.ctx, scenario.LargePool("large", 2*n)))
	pods := make([]*lab.Pod, n)
	for i := range n {
		ns := fmt.Sprintf("team-%02d", i)
		w.must(w.AddNamespace(w.ctx, ns))
		pods[i] = w.pod(w.Nodes()[i%2], ns, lab.SharedNetwork())
	}
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() {
			if err := w.Label(w.ctx, p.Namespace, "large"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	owner := map[netip.Addr]string{}
	for _, p := range pods {
		tenant := w.ready(p.Namespace)
		for _, a := range []netip.Addr{tenant.EgressIP(), tenant.GatewayIP()} {
			if owner[a] != "" {
				t.Errorf("%s and %s both have %s", owner[a], p.Namespace, a)
			}
			owner[a] = p.Namespace
		}
		w.seenAs(p, tenant)
	}
}
