// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestProbe asks for an address that the node has, for one that nobody has, and
// for one that the gateway itself has on a link.
func TestProbe(t *testing.T) {
	gw, node := pair(t)
	node.Run("ip address add 192.168.99.50/24 dev eth0")
	mac := strings.Fields(node.Run("ip -o link show eth0 | sed 's/.*ether //'"))[0]
	a := start(t, gw, Options{})
	targets := []Target{{"enp1s0", netip.MustParseAddr("192.168.99.50")}, {"enp1s0", netip.MustParseAddr("192.168.99.13")}}
	for i := range 120 { // more than are sent at once
		targets = append(targets, Target{"enp1s0", netip.AddrFrom4([4]byte{192, 168, 99, byte(100 + i)})})
	}
	probe := func() map[netip.Addr]Conflict {
		var found map[netip.Addr]Conflict
		var err error
		begin := time.Now()
		gw.Do(func() { found, err = a.Probe(t.Context(), targets, 60*time.Millisecond) })
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d > 500*time.Millisecond {
			t.Errorf("%d probes took %s", len(targets), d)
		}
		return found
	}
	found := probe()
	if c := found[netip.MustParseAddr("192.168.99.50")]; len(found) != 1 || c.MAC != mac {
		t.Errorf("found %v, want 192.168.99.50 at %s", found, mac)
	}
	// It claims nothing: the node has learned no address from it.
	if out := node.Run("ip neigh show"); strings.Contains(out, "192.168.99.1") || strings.Contains(out, "0.0.0.0") {
		t.Errorf("the node has learned from probes:\n%s", out)
	}
	node.Run("ip address del 192.168.99.50/24 dev eth0")
	if found := probe(); len(found) != 0 {
		t.Errorf("found %v after the address became free", found)
	}
}

// TestConflicts has a node claim the tenant's gateway IP.
func TestConflicts(t *testing.T) {
	gw, node := pair(t)
	a := start(t, gw, Options{})
	a.Keep([]Target{target("192.168.99.13")})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var conflicts <-chan Conflict
	var err error
	gw.Do(func() { conflicts, err = Conflicts(ctx, a.At, "enp1s0") })
	if err != nil {
		t.Fatal(err)
	}
	node.Ping("192.168.99.21", "192.168.99.13") // its ARP claims nothing of ours
	if len(conflicts) > 0 {
		t.Errorf("%v without a conflict", <-conflicts)
	}
	node.Run("ip link add link eth0 name thief address 02:00:00:00:00:66 type macvlan mode bridge; ip link set thief up")
	thief := node.Sender("thief")
	thief(gratuitousARP([]byte{2, 0, 0, 0, 0, 0x66}, netip.MustParseAddr("192.168.99.13"), arpRequest))
	select {
	case c := <-conflicts:
		if want := (Conflict{netip.MustParseAddr("192.168.99.13"), "02:00:00:00:00:66"}); c != want {
			t.Errorf("%v, want %v", c, want)
		}
	case <-time.After(3 * time.Second):
		t.Fatal("not seen")
	}
	cancel()
	for range conflicts {
	}
}
