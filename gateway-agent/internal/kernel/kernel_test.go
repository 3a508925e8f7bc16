// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// expect checks which source the server sees, over UDP and TCP.
func expect(t *testing.T, n *nettest.Net, pod, want string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got := n.Seen(network, pod, server); got != want {
			t.Errorf("%s from %s: the server saw %q, want %s", network, pod, got, want)
		}
	}
}

func TestTenantsLeaveWithTheirAddress(t *testing.T) {
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			l.pods()
			steps := l.serve(l.input())
			t.Logf("%d steps", len(steps))
			expect(t, l.node1, "10.128.0.10", "192.168.55.113")
			expect(t, l.node1, "10.128.0.11", "192.168.55.114")
			expect(t, l.node2, "10.128.2.10", "192.168.55.113")
			expect(t, l.node2, "10.128.2.11", "192.168.55.114")

			in := l.input()
			in.Tenants[0].EgressIPs, in.Tenants[1].EgressIPs = in.Tenants[1].EgressIPs, in.Tenants[0].EgressIPs
			l.serve(in)
			expect(t, l.node1, "10.128.0.10", "192.168.55.114")
			expect(t, l.node2, "10.128.2.11", "192.168.55.113")

			l.reach(plan.State{})
			l.clean("192.168.55.113", "192.168.55.114")
			for _, cmd := range []string{backend + "-save", "nft list tables", "ip route", "ip address", "ip link"} {
				t.Logf("left by %q:\n%s", cmd, l.gw.Run(cmd))
			}
		})
	}
}
