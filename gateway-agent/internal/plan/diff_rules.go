// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// tenantsGo ends the connections of the tenants whose marks are no longer
// theirs. No packet of theirs leaves any more, so that none brings them back.
func (d *differ) tenantsGo() {
	gone := make(map[uint32]string)
	check := func(mark uint32, id string) {
		if id != "" && d.owners[mark] != id {
			gone[mark] = id
		}
	}
	for _, l := range d.have.Links {
		check(Mark(d.mask, l.Number), l.Tenant)
	}
	for id, rules := range d.have.Chains {
		if inTrees(id.Name) {
			for _, r := range rules {
				if m, ok := ruleMark(r); ok {
					check(m, ruleTenant(r))
				}
			}
		}
	}
	for _, m := range sortedFunc(gone, cmp.Compare[uint32]) {
		d.add(DeleteMarkFlows{gone[m], m, d.mask})
	}
}

// unbind removes the bindings of tenants that go, and those of addresses that
// another tenant is to get.
func (d *differ) unbind() { d.prune(chainSTree) }

// prune removes from a tree the leaf rules that have to go early, and branches
// that are no longer wanted.
func (d *differ) prune(tree string) {
	var empty []ChainID
	for _, id := range removalOrder(d.have.Chains) {
		if !isTree(id.Name, tree) {
			continue
		}
		// A tree in another table is an older version's: its branches go last.
		if _, wanted := d.want.Chains[id]; !wanted && !isRoot(id.Name) && id.Table == "nat" {
			empty = append(empty, id)
			delete(d.mid, id)
			continue
		}
		var keep []string
		for _, r := range d.have.Chains[id] {
			if d.goes(id, r) {
				d.add(DelRule{ruleTenant(r), id, r})
			} else {
				keep = append(keep, r)
			}
		}
		d.mid[id] = keep
	}
	slices.SortStableFunc(empty, func(a, b ChainID) int { return len(a.Name) - len(b.Name) })
	for _, id := range empty {
		d.add(DelChain{id})
	}
}

// disown takes from the guard what lets packets of tenants that go leave, and
// packets with an address that another tenant is to get.
func (d *differ) disown() {
	gone := make(map[string]string) // bindings, as the elements name them, with their tenants
	for b, id := range d.haveBound {
		_, wanted := d.wantBound[b]
		if d.contested(b) || !wanted && (id == "" || d.owners[b.mark] != id) {
			gone[staleElement(b.mark, b.ip)] = id
		}
	}
	for _, f := range tenant.Families() {
		for _, set := range []string{setName(setOwners, f), setName(setStale, f)} {
			for _, e := range sorted(d.have.Guard.Sets[set]) {
				binding := e
				if strings.HasPrefix(set, setOwners) {
					_, binding, _ = strings.Cut(e, " . ")
				}
				if id, goes := gone[binding]; goes {
					d.early[set+" "+e] = true
					d.add(DelElement{id, set, e})
				}
			}
		}
	}
}

// goes tells whether prune removes a rule of a tree chain that stays.
func (d *differ) goes(id ChainID, rule string) bool {
	target := ChainID{id.Family, id.Table, ruleJump(rule)}
	if inTrees(target.Name) {
		_, wanted := d.want.Chains[target]
		return !wanted && id.Table == "nat"
	}
	m, ok := ruleMark(rule)
	if !ok || d.owners[m] != ruleTenant(rule) {
		return true
	}
	if isTree(id.Name, chainMTree) {
		return !d.marked(id.Family, m)
	}
	b, ok := parseBinding(rule)
	return ok && d.contested(b)
}

func isRoot(name string) bool { return name == chainMTree || name == chainSTree }

// handOver ends the connections that others have on an address before a tenant
// is bound to it. An address that is not there yet has none.
func (d *differ) handOver() {
	for _, b := range slices.SortedFunc(maps.Keys(d.wantBound), compareBinding) {
		if _, bound := d.haveBound[b]; !bound && d.present[b.ip] {
			d.add(DeleteEgressFlows{d.wantBound[b], b.ip, b.mark, d.mask})
		}
	}
}

// rulesCome makes all chains that are wanted and not there yet: translation stands
// before anything is marked. What treesLate finds is left to treesCome.
func (d *differ) rulesCome() {
	c := d.come(func(ChainID) bool { return true })
	if d.treesLate(c.leaves) {
		for _, s := range slices.Concat(c.chains, c.leaves) {
			if inBranch(s) {
				d.late = append(d.late, s)
			}
		}
		c.chains, c.leaves = slices.DeleteFunc(c.chains, inBranch), slices.DeleteFunc(c.leaves, inBranch)
	}
	d.add(c.steps()...)
}

// treesLate tells whether the trees may come after all else: what comes into
// them is about tenants whose links are still to come, and which the maps serve.
// The trees are their second line: until it stands, what the maps do not take is
// refused.
func (d *differ) treesLate(steps []Step) bool {
	for _, s := range steps {
		if !inTree(s) {
			continue
		}
		a, adds := s.(AddRule)
		if !adds {
			return false
		}
		mark, leaf := ruleMark(a.Rule)
		if !leaf {
			continue // a jump
		}
		link := LinkName(NumberOf(d.mask, mark))
		if _, there := d.have.Links[link]; there {
			return false
		}
		set, element := setName(mapLinks, a.ID.Family), linkElement(link, mark)
		if b, translates := parseBinding(a.Rule); translates {
			set, element = setName(mapTranslate, a.ID.Family), translateElement(b.mark, b.ip)
		}
		if _, served := d.want.Guard.Sets[set][element]; !served {
			return false
		}
	}
	return true
}

func (d *differ) treesCome() { d.add(d.late...) }

// inTree tells the steps about chains of the trees; inBranch those of them that
// other chains do not need.
func inTree(s Step) bool {
	switch s := s.(type) {
	case NewChain:
		return inTrees(s.ID.Name)
	case AddRule:
		return inTrees(s.ID.Name)
	case DelRule:
		return inTrees(s.ID.Name)
	}
	return false
}

func inBranch(s Step) bool {
	c, makes := s.(NewChain)
	return inTree(s) && !(makes && isRoot(c.ID.Name))
}

// compareRules compares two sets of rules. A rule that stands twice in have is
// one too many.
func compareRules(want, have []string) (gone, come []string) {
	left := make(map[string]int, len(want))
	for _, r := range want {
		left[r]++
	}
	for _, r := range have {
		if left[r] > 0 {
			left[r]--
		} else {
			gone = append(gone, r)
		}
	}
	for _, r := range want {
		if left[r] > 0 {
			left[r]--
			come = append(come, r)
		}
	}
	return gone, come
}

// chainsGo removes hooks and chains that unbind had to leave: all of them are
// emptied before the first is deleted, as they refer to each other.
func (d *differ) chainsGo() {
	for _, id := range sortedFunc(d.have.Hooks, compareChain) {
		if len(d.want.Hooks[id]) == 0 && len(d.have.Hooks[id]) > 0 {
			d.add(SetHook{ID: id, Stale: hookRules(d.have.Hooks[id])})
		}
	}
	var gone []ChainID
	for _, id := range removalOrder(d.mid) {
		if _, wanted := d.want.Chains[id]; !wanted {
			gone = append(gone, id)
			d.add(SetChain{ID: id})
		}
	}
	for _, id := range gone {
		d.add(DelChain{id})
	}
}

func hookRules(hooks []Hook) []string {
	var out []string
	for _, h := range hooks {
		out = append(out, h.Rule)
	}
	return out
}

// removalOrder is the reverse of the order of rulesCome: marks end first.
func removalOrder(chains map[ChainID][]string) []ChainID {
	return sortedFunc(chains, func(a, b ChainID) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), rank(b)-rank(a), compareChain(a, b))
	})
}

// rank is the place of a chain in the order of rulesCome. Versions up to
// November 2026 marked in mangle, where each packet paid for it.
func rank(id ChainID) int {
	if id.Name == chainMark || isTree(id.Name, chainMTree) {
		return 2
	}
	return slices.Index([]string{"filter", "nat"}, id.Table)
}

func compareBinding(a, b binding) int {
	return cmp.Or(a.ip.Compare(b.ip), cmp.Compare(a.mark, b.mark))
}
