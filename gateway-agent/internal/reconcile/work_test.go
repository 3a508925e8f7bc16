// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// TestPassesOfPartsComeToTheWhole has tenants come, go and change at random, and
// now and then something happen to the kernel. After each pass a comparison of
// everything finds nothing to do, whatever the pass looked at.
func TestPassesOfPartsComeToTheWhole(t *testing.T) {
	b := newBench(t)
	b.kernel.host.OnLink = []netip.Prefix{netip.MustParsePrefix("192.168.96.0/20")}
	r, alone := rand.New(rand.NewPCG(1, 1)), 0
	all, kinds := map[string]tenant.Tenant{}, map[string]int{}
	nodes := []tenant.Node{node("n1", 0)}
	for round := range 250 {
		for range r.IntN(3) {
			n := 1 + r.IntN(60)
			name := fmt.Sprintf("t%02d", n)
			was, known := all[name]
			switch {
			case !known || was.Released:
				all[name] = numberedRecord(n, n, int64(round))
			case r.IntN(3) == 0:
				all[name] = numberedRecord(n, 60+r.IntN(100), int64(round)) // somebody may have that one
			case r.IntN(2) == 0:
				all[name] = tombstone(was)
			default:
				delete(all, name)
			}
		}
		switch r.IntN(24) {
		case 0:
			nodes = []tenant.Node{node("n1", 0), node("n2", 1)}[:1+r.IntN(2)]
		case 1:
			if list := b.kernel.addrs(); len(list) > 0 {
				hit := list[r.IntN(len(list))]
				maps.DeleteFunc(b.kernel.state.Addrs, func(a plan.Addr, _ string) bool { return a.Dev+" "+a.IP.String() == hit })
			}
		case 2:
			b.now = b.now.Add(time.Minute)
		}
		b.show(int64(round+1), maps.Clone(all), nodes...)
		if _, known := b.loop.mergeKnown(b.views, nil, b.kernel.copy()); known {
			alone++
		}
		merged := Merge(b.loop.memory.clone(), b.views, "g1", nil).Memory
		b.pass()
		if d := cmp.Diff(merged, b.loop.memory, sameValues, cmpopts.IgnoreFields(Entry{}, "Number", "Told"), cmpopts.IgnoreFields(Memory{}, "Departing")); d != "" {
			t.Fatalf("round %d: a pass of kind %s does not remember what Merge would (-Merge +pass)\n%s", round, b.loop.Snapshot().Pass.Kind, d)
		}
		var anew Loop
		anew.begin(b.loop.memory)
		if d := cmp.Diff(anew.index, b.loop.index, cmp.AllowUnexported(plan.Index{}), sameValues, cmpopts.SortSlices(strings.Compare)); d != "" {
			t.Fatalf("round %d: the index (-memory +index)\n%s", round, d)
		}
		kinds[b.loop.Snapshot().Pass.Kind]++
		if snap := b.loop.Snapshot(); len(snap.Pass.Failed) == 0 {
			all := b.loop.statusesOf(b.loop.memory.Refs(), false, result{}, snap.Problems, nil)
			if d := cmp.Diff(all, snap.Statuses); d != "" {
				t.Fatalf("round %d: statuses (-of all +published)\n%s", round, d)
			}
		}
		want, _ := plan.Desired(InputOf(b.loop.memory, b.kernel.host))
		if steps := plan.Diff(want, b.kernel.copy()); len(steps) > 0 {
			t.Fatalf("round %d: a pass of kind %s has left %d steps, the first: %s; it told %v, %+v", round, b.loop.Snapshot().Pass.Kind, len(steps), steps[0], b.loop.Snapshot().Problems, b.loop.Snapshot().Pass)
		}
		loaded, err := open(t, b.dir).Load()
		if err != nil || compare(loaded.Memory, b.loop.memory) != nil {
			t.Fatalf("round %d: the disk holds something else: %v", round, err)
		}
	}
	if alone < 50 {
		t.Errorf("%d changes were merged by themselves", alone)
	}
	if kinds[PassPart] < 50 || kinds[PassNone] < 10 || kinds[PassWhole] < 10 {
		t.Errorf("passes by kind: %v", kinds)
	}
}

func numberedRecord(n, egress int, generation int64) tenant.Tenant {
	out := record(fmt.Sprintf("t%02d", n), 100+n)
	out.EgressIPs = record("x", 100+egress).EgressIPs
	out.Generation = generation + 1
	return out
}

// TestPassesLookAfresh: what was changed is looked at once more, all of it, and
// without changes everything every few minutes.
func TestPassesLookAfresh(t *testing.T) {
	b := newBench(t)
	kind := func(want string, fresh int) {
		t.Helper()
		before := b.kernel.fresh
		b.mustPass()
		if got := b.loop.Snapshot().Pass.Kind; got != want || b.kernel.fresh-before != fresh {
			t.Errorf("a pass of kind %q with %d fresh looks; want %q with %d", got, b.kernel.fresh-before, want, fresh)
		}
	}
	b.show(1, without(blueAndRed(), "red"), node("n1", 0))
	kind(PassWhole, 1)
	b.loop.due = true // as the timer after a change
	kind(PassWhole, 1)
	kind(PassNone, 0)
	b.show(2, blueAndRed(), node("n1", 0))
	kind(PassPart, 0)
	if b.loop.unverified.IsZero() {
		t.Error("nobody looks whether the kernel has taken the change")
	}
	b.loop.due = true
	kind(PassWhole, 1)
	delete(b.kernel.state.Addrs, plan.Addr{Dev: "enp7s0", IP: record("red", 14).EgressIPs[0]})
	kind(PassWhole, 0)
	b.want("healed", bothAddrs, b.kernel.addrs())
	b.loop.due = true
	kind(PassWhole, 1)
	b.show(3, blueAndRed(), node("n1", 0), node("n2", 1))
	kind(PassWhole, 0) // nodes concern everybody
	b.loop.due = true
	kind(PassWhole, 1)
	b.now = b.now.Add(lookAfresh)
	b.show(4, blueAndRed(), node("n1", 0))
	kind(PassWhole, 0) // a change comes first
	b.loop.due = b.loop.nextFresh() != nil
	kind(PassWhole, 1)
	b.kernel.host.OnLink = append(b.kernel.host.OnLink, netip.MustParsePrefix("192.168.0.0/24"))
	kind(PassWhole, 0) // and so does the host
}
