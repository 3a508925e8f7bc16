// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// some returns a random tenant number n; its addresses are nobody else's, or
// now and then another's.
func some(r *rand.Rand, n int) Numbered {
	at := n
	if r.IntN(1000) == 0 {
		at = 1 + r.IntN(MaxNumber)
	}
	four := []string{fmt.Sprintf("192.168.%d.%d", 96+at%16, at/16%256), fmt.Sprintf("192.168.%d.%d", 48+at%8, at/16%256)}
	if r.IntN(3) == 0 {
		four = append(four, fmt.Sprintf("192.168.%d.%d", 56+at%8, at/16%256))
	}
	six := []string{fmt.Sprintf("fd00:99::%x", at), fmt.Sprintf("fd00:55::%x", at)}
	ips := [][]string{four, four, four, six, append(slices.Clone(four), six...)}[r.IntN(5)]
	return numbered(n, fmt.Sprintf("t%d", n), ips...)
}

// TestPartIsTheWhole checks, for random tenants and random changes of some, that
// a change by itself gives just the steps that the whole gives.
func TestPartIsTheWhole(t *testing.T) {
	const seed, rounds = 1, 200
	r, parts := rand.New(rand.NewPCG(seed, seed)), 0
	for round := range rounds {
		before := demo()
		before.Host.OnLink = prefixes("192.168.0.0/16", "fd00::/16")
		before.Tenants = nil
		density := []int{4000, 400, 40, 4}[r.IntN(4)]
		for n := 1; n <= MaxNumber; n++ {
			if r.IntN(density) == 0 || r.IntN(200) == 0 && n>>8 == 3 {
				before.Tenants = append(before.Tenants, some(r, n))
			}
		}
		after, changed := change(r, before)
		whole, problems := Desired(before)
		have := observedState(whole)
		x, changes := indexOf(before), changesOf(after, changed)
		was, will, ok := x.Part(before, after, changes, problems)
		if !ok {
			continue
		}
		parts++
		wanted, wholeProblems := Desired(after)
		mine, partProblems := Desired(will)
		old, _ := Desired(was)
		for id, t := range changes {
			x.Set(id, t)
		}
		if d := cmp.Diff(indexOf(after), x, cmp.AllowUnexported(Index{}), cmpopts.EquateComparable(netip.Addr{}), cmpopts.SortSlices(strings.Compare), cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("round %d, seed %d: the index differs from a new one\n%s", round, seed, d)
		}
		if d := cmp.Diff(text(Diff(wanted, have)), text(Diff(mine, Restrict(have, old, mine)))); d != "" {
			t.Fatalf("round %d, seed %d: %v: a part gives other steps than the whole (-whole +part)\n%s", round, seed, changed, d)
		}
		for _, p := range wholeProblems {
			if changed[TenantID(p.Cluster, p.Tenant)] && !slices.Contains(partProblems, p) {
				t.Fatalf("round %d, seed %d: the part does not tell %v", round, seed, p)
			}
		}
	}
	if parts < rounds/3 {
		t.Errorf("only %d of %d changes were planned by themselves", parts, rounds)
	}
}

func indexOf(in Input) *Index {
	x := new(Index)
	for _, t := range in.Tenants {
		x.Set(TenantID(t.Cluster, t.Name), &t)
	}
	return x
}

// changesOf returns what is in place of the tenants of changed.
func changesOf(after Input, changed map[string]bool) map[string]*Numbered {
	changes := make(map[string]*Numbered)
	for id := range changed {
		changes[id] = nil
	}
	for _, t := range after.Tenants {
		if id := TenantID(t.Cluster, t.Name); changed[id] {
			changes[id] = &t
		}
	}
	return changes
}

// change adds, removes or alters a few tenants.
func change(r *rand.Rand, before Input) (after Input, changed map[string]bool) {
	after, changed = before, make(map[string]bool)
	after.Tenants = slices.Clone(before.Tenants)
	r.Shuffle(len(after.Tenants), func(i, j int) { after.Tenants[i], after.Tenants[j] = after.Tenants[j], after.Tenants[i] })
	for range 1 + r.IntN(3) {
		n := 1 + r.IntN(MaxNumber)
		if len(before.Tenants) > 0 && r.IntN(2) == 0 {
			n = before.Tenants[r.IntN(len(before.Tenants))].Number // or one beside it
			n = max(1, n&^0xf|r.IntN(16)&-r.IntN(2)|n&0xf&-r.IntN(2))
		}
		id := TenantID("demo", fmt.Sprintf("t%d", n))
		changed[id] = true
		at := slices.IndexFunc(after.Tenants, func(x Numbered) bool { return x.Number == n })
		switch {
		case at < 0:
			after.Tenants = append(after.Tenants, some(r, n))
		case r.IntN(2) == 0:
			after.Tenants = slices.Delete(after.Tenants, at, at+1)
		default:
			after.Tenants[at] = some(r, n)
		}
	}
	return after, changed
}

// observedState is a state as the kernel shows it.
func observedState(s State) State { return cloneState(canonical(s)) }

// TestPartNeedsTheWhole names changes that concern others as well.
func TestPartNeedsTheWhole(t *testing.T) {
	blue := TenantID("demo", "ns-blue")
	for name, change := range map[string]func(in *Input){
		"another's address": func(in *Input) { in.Tenants[0].EgressIPs = in.Tenants[1].EgressIPs },
		"another's number":  func(in *Input) { in.Tenants[0].Number = in.Tenants[1].Number },
		"no number":         func(in *Input) { in.Tenants[0].Number = 0 },
		"the first with IPv6": func(in *Input) {
			in.Tenants[0].GatewayIPs, in.Tenants[0].EgressIPs = addrs("fd00:99::1"), addrs("fd00:55::1")
		},
		"exceptions": func(in *Input) { in.Spills = []Spill{{Tenant: blue}} },
	} {
		t.Run(name, func(t *testing.T) {
			before, after := demo(), demo()
			before.Nodes, before.Networks[0].PodNetworks = nil, prefixes("10.128.0.0/14")
			after.Nodes, after.Networks[0].PodNetworks = nil, prefixes("10.128.0.0/14")
			change(&after)
			if _, _, ok := indexOf(before).Part(before, after, changesOf(after, map[string]bool{blue: true}), nil); ok {
				t.Error("it is planned without the others")
			}
		})
	}
	before, after := demo(), demo()
	after.Tenants = after.Tenants[1:]
	gone, x := map[string]*Numbered{blue: nil}, indexOf(before)
	if _, _, ok := x.Part(before, after, gone, nil); !ok {
		t.Error("a tenant that goes needs no other")
	}
	if _, _, ok := x.Part(before, after, gone, []Problem{{Tenant: "ns-red", Reason: reasonTaken}}); ok {
		t.Error("another tenant may have waited for its address")
	}
}
