// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestAdoptsWhatOnlyTheMapsServe: the process dies after any step of a change
// that adds a tenant, and the disk copy is lost. If the tenant is served by then,
// by the maps alone or by the trees too, it goes on to be.
func TestAdoptsWhatOnlyTheMapsServe(t *testing.T) {
	red, byMapsAlone := record("red", 14), 0
	for at, done := 0, false; !done; at++ {
		b := newBench(t)
		b.show(1, without(blueAndRed(), "red"), node("n1", 0))
		b.mustPass()
		b.kernel.crashAfter = at
		b.show(2, blueAndRed(), node("n1", 0))
		_, done = b.pass()
		b.kernel.crashAfter = -1
		_, linked := b.kernel.state.Addrs[plan.Addr{Dev: "eg002", IP: red.GatewayIPs[0]}]
		have := b.kernel.copy()
		inMaps, inTrees := slices.Contains(have.Translated()[2], red.EgressIPs[0]), len(sourcesOf(have.Chains)["c1/red"]) > 0
		if linked && inMaps && !inTrees {
			byMapsAlone++
		}
		if err := os.Remove(filepath.Join(b.dir, stateName)); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.mustPass()
		want := bothAddrs
		if !linked || !inMaps && !inTrees {
			want = blueAddrs
		}
		b.want(fmt.Sprintf("adopted after step %d", at), want, b.kernel.addrs())
		b.settled()
	}
	if byMapsAlone == 0 {
		t.Error("at no step the maps alone have served the tenant")
	}
}

// TestEgressOfBothFamilies: what the trees know of one family hides nothing that
// the maps know of the other.
func TestEgressOfBothFamilies(t *testing.T) {
	a, b, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")
	if got := egressOf([]netip.Addr{b, a}, []netip.Addr{a, six}); !slices.Equal(got, []netip.Addr{b, a, six}) {
		t.Errorf("got %v", got)
	}
}
