// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"slices"
	"testing"

	"egress-gateway.io/shared/tenant"
)

// forwardGuardFirst fails if any step comes before one that puts the forward guard
// in its place.
func forwardGuardFirst(t *testing.T, steps []Step) {
	t.Helper()
	guard := true
	for i, s := range steps {
		is := ForwardGuard(s)
		if is && !guard {
			t.Fatalf("step %d of the forward guard comes too late: %s\nall:\n%s", i, s, text(steps))
		}
		guard = is
	}
}

// restores counts the calls of iptables-restore: one for each family of a row.
func restores(steps []Step) int {
	calls, row := 0, make(map[tenant.Family]bool)
	for _, s := range steps {
		if !IsRule(s) {
			clear(row)
			continue
		}
		if f, _ := RuleFamily(s); !row[f] {
			row[f] = true
			calls++
		}
	}
	return calls
}

// TestForwardGuardFirst: whatever was taken from the kernel, the forward guard is
// put back before anything else, the exit guard next. That costs two calls of
// iptables-restore more where all rules were flushed, and none else, so from an
// empty kernel: the trees of tenants whose links are still to come are late.
func TestForwardGuardFirst(t *testing.T) {
	in := dualDemo()
	want := mustDesired(t, in)
	settledWorld := func() *world {
		w := newWorld()
		drive(t, w, Diff(want, w.state))
		return w
	}
	without := func(s *State, gone func(ChainID) bool) {
		maps.DeleteFunc(s.Chains, func(id ChainID, _ []string) bool { return gone(id) })
		maps.DeleteFunc(s.Hooks, func(id ChainID, _ []Hook) bool { return gone(id) })
	}
	more := dualDemo()
	more.Tenants = append(more.Tenants, numbered(3, "ns-green", "192.168.99.15", "192.168.55.115", "fd00:99::15", "fd00:55::115"))
	fewer := dualDemo()
	fewer.Tenants = fewer.Tenants[:1]
	noRoutes := func(s *State) { clear(s.Routes); clear(s.Sysctls) }
	for _, c := range []struct {
		name   string
		damage func(s *State)
		to     Input
		calls  int
		first  []bool // of the guards that come back: whether it is the forward guard
	}{
		{"from empty", func(s *State) { *s = cloneState(State{}) }, in, 4, []bool{true, false}},
		{"all rules flushed", func(s *State) {
			without(s, func(ChainID) bool { return true })
			s.Guard = Guard{Sets: map[string]GuardSet{}}
		}, in, 4, []bool{true, false}},
		{"both guards flushed, and one tenant goes", func(s *State) {
			without(s, func(id ChainID) bool { return id.Table == "filter" })
			s.Guard = Guard{Sets: map[string]GuardSet{}}
		}, fewer, 6, []bool{true, false}},
		{"the forward guard flushed, and all else changes", func(s *State) {
			without(s, func(id ChainID) bool { return id.Table == "filter" })
			noRoutes(s)
		}, fewer, 6, []bool{true}},
		{"one hook gone", func(s *State) { delete(s.Hooks, ChainID{tenant.IPv6, "filter", "FORWARD"}) }, in, 1, []bool{true}},
		{"the exit guard gone", func(s *State) { s.Guard = Guard{Sets: map[string]GuardSet{}} }, in, 0, []bool{false}},
		{"one more", func(*State) {}, more, 2, nil},
		{"one fewer", func(*State) {}, fewer, 4, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := settledWorld()
			w.damaged = true
			c.damage(&w.state)
			to := mustDesired(t, c.to)
			steps := Diff(to, w.state)
			forwardGuardFirst(t, steps)
			var first []bool
			for _, s := range steps {
				_, exit := s.(SetGuard)
				if is := ForwardGuard(s); (is || exit) && !slices.Contains(first, is) {
					first = append(first, is)
				}
			}
			if !slices.Equal(first, c.first) {
				t.Errorf("guards come back in the order %v (true: forward), want %v:\n%s", first, c.first, text(steps))
			}
			if n := restores(steps); n != c.calls {
				t.Errorf("%d calls of iptables-restore, want %d:\n%s", n, c.calls, text(steps))
			}
			drive(t, w, steps)
			settled(t, to, w)
		})
	}
}
