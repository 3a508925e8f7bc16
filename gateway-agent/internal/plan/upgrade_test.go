// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"strings"
	"testing"

	"egress-gateway.io/shared/tenant"
)

// markedInMangle changes a state to what versions up to November 2026 made: the
// tree that marks, and its hook, stood in mangle.
func markedInMangle(s State) State {
	s = cloneState(s)
	for id, rules := range s.Chains {
		if id.Table == "nat" && rank(id) == 2 {
			old := ChainID{id.Family, "mangle", id.Name}
			for _, r := range rules {
				s.Chains[old] = append(s.Chains[old], strings.ReplaceAll(r, " -g ", " -j "))
			}
			delete(s.Chains, id)
		}
	}
	for f, id := range map[tenant.Family]ChainID{tenant.IPv4: {tenant.IPv4, "nat", "PREROUTING"}, tenant.IPv6: {tenant.IPv6, "nat", "PREROUTING"}} {
		if len(s.Hooks[id]) > 0 {
			s.Hooks[ChainID{f, "mangle", "PREROUTING"}] = []Hook{{1, "-i eg+ -j EGW-MARK"}}
			delete(s.Hooks, id)
		}
	}
	return s
}

// TestUpgradeMarksAllTheTime: new connections are marked by the old tree until
// the new one stands.
func TestUpgradeMarksAllTheTime(t *testing.T) {
	want := mustDesired(t, dualDemo())
	w := newWorld()
	drive(t, w, Diff(want, w.state))
	w.state = markedInMangle(w.state)
	steps := Diff(want, w.state)
	last := slices.IndexFunc(steps, func(s Step) bool { h, ok := s.(SetHook); return ok && h.ID.Table == "mangle" })
	for i, s := range steps {
		switch s := s.(type) {
		case SetHook:
			if s.ID.Table == "nat" && i > last {
				t.Errorf("the old tree's hook goes before the new one's comes: %s", s)
			}
		case DelRule:
			t.Errorf("a rule goes: %s", s)
		case DelLink, DelAddr, DeleteMarkFlows, DeleteEgressFlows:
			t.Errorf("a tenant is touched: %s", s)
		}
	}
	drive(t, w, steps)
	settled(t, want, w)
	drive(t, w, Diff(State{}, w.state))
	for id := range w.state.Chains {
		t.Errorf("left after a cleanup: %v", id)
	}
	// A cleanup by this version removes what the other one left.
	w = newWorld()
	drive(t, w, Diff(want, w.state))
	w.state = markedInMangle(w.state)
	drive(t, w, Diff(State{}, w.state))
	if len(w.state.Chains)+len(w.state.Hooks) > 0 {
		t.Errorf("left: %v %v", w.state.Chains, w.state.Hooks)
	}
}

// TestUnmarkedBeforeUntranslated: the new packets of a tenant that goes lose
// their mark in the maps before any translation of theirs goes.
func TestUnmarkedBeforeUntranslated(t *testing.T) {
	in := dualDemo()
	w := newWorld()
	drive(t, w, Diff(mustDesired(t, in), w.state))
	in.Tenants = nil
	unmarked, untranslated := -1, -1
	for i, s := range Diff(mustDesired(t, in), w.state) {
		e, element := s.(DelElement)
		_, rule := s.(DelRule)
		_, chain := s.(DelChain)
		switch {
		case element && strings.HasPrefix(e.Set, mapLinks):
			unmarked = i
		case untranslated < 0 && (rule || chain || element && translates(e.Set)):
			untranslated = i
		}
	}
	if unmarked < 0 || untranslated < 0 || unmarked > untranslated {
		t.Errorf("the last mark goes in step %d, the first translation in step %d", unmarked, untranslated)
	}
}
