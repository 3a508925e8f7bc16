// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"fmt"
	"maps"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestManyStepsAtOnce: of steps that go to the kernel together, those that it
// refuses do not keep the others, nor what was done before from being no error.
func TestManyStepsAtOnce(t *testing.T) {
	const tenants, linkTaken, addressTaken = 150, 4, 9
	l := newLab(t, "iptables")
	in := l.many(tenants)
	want := l.want(in)
	steps := plan.Diff(want, l.observe())
	mac := func(i int) string { return want.Links[plan.LinkName(i)].MAC }
	l.gw.Run(fmt.Sprintf(`ip link add link enp1s0 name eg003 address %s type macvlan mode bridge
		ip link add link enp1s0 name eg005 address %s type macvlan mode private bcqueuelen 0
		ip link set eg005 up
		ip link add eg%03x type veth peer name other0
		ip address add 192.168.10.8/32 dev enp7s0 label enp7s0:egw
		ip address add %s/32 dev enp7s0`, mac(3), mac(5), linkTaken, in.Tenants[addressTaken-1].EgressIPs[0]))
	failed := make(map[string]int)
	for _, run := range plan.Runs(steps) {
		if run.Executor == plan.Kernel {
			l.gw.Do(func() {
				failures, _ := l.kernel.Apply(context.Background(), run.Steps)
				for _, f := range failures {
					failed[f.Step.Tenant()]++
				}
			})
		}
	}
	if !maps.Equal(failed, map[string]int{"demo/ns-4": 1, "demo/ns-9": 1}) {
		t.Errorf("failures: %v", failed)
	}
	have := l.observe()
	for i, tn := range in.Tenants {
		name := plan.LinkName(i + 1)
		gateway, egress := plan.Addr{Dev: name, IP: tn.GatewayIPs[0]}, plan.Addr{Dev: "enp7s0", IP: tn.EgressIPs[0]}
		_, reached := have.Addrs[gateway]
		_, leaves := have.Addrs[egress]
		if ok := i+1 != linkTaken && i+1 != addressTaken; reached != ok || leaves != ok || (have.Links[name] == want.Links[name]) != ok {
			t.Errorf("tenant %d: %+v, gateway IP %t, egress IP %t", i+1, have.Links[name], reached, leaves)
		}
	}
	l.gw.Run(fmt.Sprintf("ip link delete eg%03x; ip address delete %s/32 dev enp7s0", linkTaken, in.Tenants[addressTaken-1].EgressIPs[0]))
	l.reach(want)
}
