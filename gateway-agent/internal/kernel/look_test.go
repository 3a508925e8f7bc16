// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
)

func (l *lab) look() kernel.Sight {
	l.t.Helper()
	var s kernel.Sight
	var err error
	l.gw.Do(func() { s, err = l.kernel.Look(context.Background(), false) })
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// TestLookFollowsTheKernel: what a look concludes from the kernel's notices, its
// count of changes and the steps is what reading everything gives, whoever has
// changed it.
func TestLookFollowsTheKernel(t *testing.T) {
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			in := l.input()
			l.serve(in)
			same := func(what string, unchanged bool) {
				t.Helper()
				seen := l.look()
				if seen.Same != unchanged {
					t.Errorf("%s: a look says %t", what, seen.Same)
				}
				values := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}
				host, state := seen.Host, l.observe() // reads everything
				if d := cmp.Diff(state, seen.State, values); d != "" {
					t.Errorf("%s (-kernel +seen)\n%s", what, d)
				}
				l.gw.Do(func() {
					now, err := l.kernel.Facts(context.Background())
					if d := cmp.Diff(now, host, values); d != "" || err != nil {
						t.Errorf("%s: host (-kernel +seen)\n%s%v", what, d, err)
					}
				})
			}
			same("served", true)
			red := in.Tenants[1]
			in.Tenants[1].EgressIPs = addrs("192.168.55.120")
			l.apply(plan.Diff(l.want(in), l.look().State))
			same("another egress IP", true)
			in.Tenants = append(in.Tenants[:1:1], numbered(0x21, "ns-more", "192.168.99.15", "192.168.55.115"))
			l.apply(plan.Diff(l.want(in), l.look().State))
			same("one goes, one comes", true)
			in.Tenants = append(in.Tenants[:1:1], red)
			l.apply(plan.Diff(l.want(in), l.look().State))
			same("branches go", true)
			for _, damage := range []string{
				"ip link delete eg001", "ip address delete 192.168.99.14/32 dev eg002", "ip address delete 192.168.55.114/32 dev enp7s0",
				"ip route flush proto 97", "ip link set eg002 down", "ip link set eg002 alias other", "ip address add 192.168.55.77/32 dev enp7s0",
				"ip address add 192.168.99.77/32 dev eg002", backend + " -t nat -F EGW-SNAT", backend + " -t nat -A EGW-S00 -j RETURN",
				"nft flush set inet egw-guard owners4", "nft delete table inet egw-guard", "nft delete table netdev egw-neigh",
				"ip link set enp1s0 down && ip link set enp1s0 up", "ip link add veth7 type veth peer name veth8", "ip link set veth7 name veth9",
				"sysctl -qw net.ipv4.ip_forward=0",
			} {
				l.look()
				l.gw.Run(damage)
				same(damage, damage[:11] == "ip link add")
				l.reach(l.want(in))
			}
			same("all repaired", true)
		})
	}
}

// TestLookIsGivenUp: a look that is given up, at whatever moment, changes nothing
// of what is known. The next one, which does not read everything, tells what
// there is to tell.
func TestLookIsGivenUp(t *testing.T) {
	for _, backend := range backends(t) {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, backend)
			in := l.many(200)
			l.serve(in)
			want := l.want(in)
			began := time.Now()
			l.observe()
			whole, givenUp, rounds := time.Since(began), 0, 40
			for i := range rounds {
				damage := ""
				if i%5 == 4 {
					damage = []string{"ip link delete eg001", "nft flush set inet egw-guard owners4"}[i/5%2]
					l.gw.Run(damage)
				}
				ctx, cancel := context.WithTimeout(context.Background(), whole*time.Duration(i)/time.Duration(rounds))
				var err error
				began := time.Now()
				l.gw.Do(func() { _, err = l.kernel.Look(ctx, true) })
				cancel()
				if err == nil {
					whole = min(whole, time.Since(began))
					l.reach(want)
					continue
				}
				givenUp++
				seen := l.look()
				if steps := plan.Diff(want, seen.State); seen.Same != (damage == "") || (len(steps) == 0) != (damage == "") {
					t.Errorf("given up after %d of %d parts, %q: the next look says %t, and leads to %d steps", i, rounds, damage, seen.Same, len(steps))
				}
				l.reach(want)
			}
			if givenUp < rounds/4 {
				t.Errorf("%d of %d looks were given up", givenUp, rounds)
			}
		})
	}
}

// TestWatchTellsWhatOthersChange: a link, an address or a route of ours that
// somebody deletes is told at once; routes of others are not.
func TestWatchTellsWhatOthersChange(t *testing.T) {
	l := newLab(t, "iptables-nft")
	in := l.input()
	l.serve(in)
	told, ended := make(chan struct{}, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		ended <- l.kernel.Watch(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	const soon, patience = 300 * time.Millisecond, 10 * time.Second
	quiet := func() { // a report may be under way, and a link takes a moment to come up
		for {
			select {
			case <-told:
				l.look()
			case <-time.After(soon):
				return
			}
		}
	}
	for _, damage := range []string{"ip route flush proto 97", "ip link delete eg001", "ip address delete 192.168.55.114/32 dev enp7s0"} {
		l.gw.Run(damage)
		select {
		case <-told:
		case <-time.After(patience):
			t.Fatalf("%s: nobody was told", damage)
		}
		l.reach(l.want(in))
		l.look()
		quiet()
	}
	// On a busy machine one report may be that late, but not each time.
	bothers := func() bool {
		l.gw.Run("ip route add 198.51.100.0/24 via 192.168.99.50 && ip route delete 198.51.100.0/24")
		select {
		case <-told:
			quiet()
			return true
		case <-time.After(soon):
			return false
		}
	}
	for tries := 3; bothers(); tries-- {
		if tries == 1 {
			t.Error("told of what concerns nobody")
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestWatchTellsWhatOthersChangeInRules: what somebody does to rules is told soon,
// what the agent does itself is not, and who changes rules all the time does
// not keep it busy.
func TestWatchTellsWhatOthersChangeInRules(t *testing.T) {
	l := newLab(t, "iptables-nft")
	in := l.input()
	l.serve(in)
	told, ended := make(chan struct{}, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- l.kernel.WatchRules(ctx, func() { told <- struct{}{} }) }()
	const interval, pause, patience = 200 * time.Millisecond, time.Second, 10 * time.Second
	reports := func(d time.Duration) int {
		time.Sleep(d)
		n := len(told)
		for range n {
			<-told
		}
		return n
	}
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		fewer := in
		fewer.Tenants = in.Tenants[:1]
		l.serve(fewer)
		l.serve(in)
	}
	if n := reports(2 * interval); n > 0 {
		t.Errorf("the agent's own changes were told, %d times", n)
	}
	for _, damage := range []string{"nft flush chain inet egw-guard exit", "iptables-nft -F EGW-FWD", "nft flush ruleset"} {
		l.gw.Run(damage)
		select {
		case <-told:
		case <-time.After(patience):
			t.Fatalf("%s: nobody was told", damage)
		}
		l.serve(in)
		time.Sleep(pause) // between two reports
	}
	_ = reports(2 * interval)
	l.gw.Run("for n in 1 2 3 4 5 6 7 8 9 10; do nft add table inet foreign; nft delete table inet foreign; sleep 0.1; done")
	if n := reports(pause); n < 1 || n > 4 {
		t.Errorf("somebody else's changes within two seconds were told %d times", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
