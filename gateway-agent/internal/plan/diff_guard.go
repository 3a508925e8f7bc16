// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"maps"
	"net/netip"
	"slices"
)

func (g Guard) empty() bool { return len(g.Rules) == 0 && len(g.Sets) == 0 }

// Same compares everything but what the kernel counts, and which tenant an
// element is for.
func (g Guard) Same(o Guard) bool {
	return g.sameShape(o) && maps.EqualFunc(g.Sets, o.Sets, func(a, b GuardSet) bool { return sameKeys(a, b) })
}

// sameShape compares everything but the elements.
func (g Guard) sameShape(o Guard) bool {
	byChain := func(g Guard) map[string][]string {
		out := make(map[string][]string)
		for _, r := range g.Rules {
			out[r.Chain] = append(out[r.Chain], r.Comment)
		}
		return out
	}
	return maps.EqualFunc(byChain(g), byChain(o), slices.Equal) &&
		slices.Equal(sorted(g.Sets), sorted(o.Sets))
}

// guardFirst makes the guard cover what will be there, besides what is.
func (d *differ) guardFirst() {
	want, have := d.want.Guard, d.have.Guard
	if want.empty() {
		return
	}
	if !want.sameShape(have) {
		d.have.Guard = d.idle(want) // the rest of the guard's steps have nothing else to do
		d.add(SetGuard{d.have.Guard})
		return
	}
	for _, set := range sorted(want.Sets) {
		missing := slices.DeleteFunc(sorted(want.Sets[set]), func(e string) bool { _, ok := have.Sets[set][e]; return ok })
		if len(missing) == 0 || CountedSet(set) || translates(set) {
			continue
		}
		if intervalSet(set) {
			if all := unite(want.Sets[set], have.Sets[set]); !slices.Equal(all, sorted(have.Sets[set])) {
				d.add(SetElements{set, all})
			}
			continue
		}
		d.makeRoom(set, missing)
		for _, e := range missing {
			if !d.marksNow(set, e) {
				d.add(AddElement{want.Sets[set][e], set, e})
			}
		}
	}
}

// makeRoom removes from a map that tells whose an address is the elements whose
// keys get other values, in the transaction that gives them.
func (d *differ) makeRoom(set string, missing []string) {
	if !isMap(set) || marks(set) {
		return
	}
	held := make(map[string]string, len(d.have.Guard.Sets[set]))
	for e := range d.have.Guard.Sets[set] {
		held[keyOf(e)] = e
	}
	for _, e := range missing {
		if old, there := held[keyOf(e)]; there {
			d.early[set+" "+old] = true
			d.add(DelElement{d.want.Guard.Sets[set][e], set, old})
		}
	}
}

// guardLast removes from the guard what it no longer has to cover.
func (d *differ) guardLast() {
	want, have := d.want.Guard, d.have.Guard
	if want.empty() {
		if !have.empty() {
			d.add(DelGuard{})
		}
		return
	}
	for _, set := range sorted(have.Sets) {
		if CountedSet(set) {
			continue
		}
		extra := slices.DeleteFunc(sorted(have.Sets[set]), func(e string) bool { _, ok := want.Sets[set][e]; return ok })
		if intervalSet(set) {
			now := sorted(have.Sets[set])
			if len(want.Sets[set]) > 0 {
				now = unite(want.Sets[set], have.Sets[set])
			}
			if !slices.Equal(now, sorted(want.Sets[set])) || slices.ContainsFunc(extra, isRange) {
				d.add(SetElements{set, sorted(want.Sets[set])})
			}
			continue
		}
		for _, e := range extra {
			if !d.early[set+" "+e] {
				d.add(DelElement{"", set, e})
			}
		}
	}
}

// isRange tells an element that is no prefix, which no plan has.
func isRange(element string) bool {
	_, err := netip.ParsePrefix(element)
	return err != nil
}

// unite returns the prefixes that cover both sets, as strings in order.
func unite(a, b GuardSet) []string {
	var all []netip.Prefix
	for _, s := range []GuardSet{a, b} {
		for e := range s {
			if p, err := netip.ParsePrefix(e); err == nil {
				all = append(all, p)
			}
		}
	}
	var out []string
	for _, p := range aggregate(all) {
		out = append(out, p.String())
	}
	slices.Sort(out)
	return out
}
