// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"maps"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// ForwardGuard tells the steps that put chains and hooks of the forward guard in
// their place. Those that take some away are none.
func ForwardGuard(s Step) bool {
	if _, table := RuleFamily(s); table != "filter" {
		return false
	}
	switch s := s.(type) {
	case DelChain:
		return false
	case SetChain:
		return len(s.Rules) > 0
	case SetHook:
		return s.Rule != ""
	}
	return true
}

// forwardFirst puts the forward guard in its place, that of both families before
// anything else. Where no tree has a rule yet, the chains above the trees, which
// do nothing by themselves, come with it: they need no call of their own then.
func (d *differ) forwardFirst() {
	var above []Step
	for _, f := range tenant.Families() {
		guard := d.come(func(id ChainID) bool { return id.Family == f && id.Table == "filter" }).steps()
		d.add(guard...)
		if len(guard) > 0 && d.treeless(f) {
			above = append(above, d.aboveTrees(f)...)
		}
	}
	d.add(above...)
}

// treeless tells whether the kernel has no rule in any tree of a family, and none
// is wanted that answers ahead of them.
func (d *differ) treeless(f tenant.Family) bool {
	if _, spills := d.want.Chains[ChainID{f, "nat", chainSpill}]; spills {
		return false
	}
	for id, rules := range d.have.Chains {
		if id.Family == f && len(rules) > 0 && inTrees(id.Name) {
			return false
		}
	}
	return true
}

// aboveTrees makes the roots of the trees of a family, empty, and what leads there.
func (d *differ) aboveTrees(f tenant.Family) []Step {
	var roots []Step
	for _, name := range []string{chainMTree, chainSTree} {
		id := ChainID{f, "nat", name}
		if _, exists := d.mid[id]; !exists {
			roots = append(roots, NewChain{id})
			d.mid[id] = nil
		}
	}
	return append(roots, d.come(func(id ChainID) bool { return id.Family == f && !inTrees(id.Name) }).steps()...)
}

// inTrees tells the chains of both trees.
func inTrees(name string) bool { return isTree(name, chainMTree) || isTree(name, chainSTree) }

// coming is what makes chains and hooks as they are wanted, in this order.
type coming struct{ chains, lists, leaves, hooks []Step }

func (c coming) steps() []Step { return slices.Concat(c.chains, c.lists, c.leaves, c.hooks) }

// come returns what some chains, and hooks in some built-in chains, lack, and takes
// it for done.
func (d *differ) come(which func(ChainID) bool) (c coming) {
	ids := slices.DeleteFunc(slices.Collect(maps.Keys(d.want.Chains)), func(id ChainID) bool { return !which(id) })
	slices.SortFunc(ids, func(a, b ChainID) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), rank(a)-rank(b), compareChain(a, b))
	})
	for _, id := range ids {
		want, have := d.want.Chains[id], d.mid[id]
		if _, exists := d.mid[id]; !exists {
			c.chains = append(c.chains, NewChain{id})
		}
		d.mid[id] = want
		if ordered(id.Name) {
			if !slices.Equal(want, have) {
				c.lists = append(c.lists, SetChain{id, want})
			}
			continue
		}
		gone, added := compareRules(want, have)
		for _, r := range gone {
			c.leaves = append(c.leaves, DelRule{ruleTenant(r), id, r})
		}
		for _, r := range added {
			c.leaves = append(c.leaves, AddRule{ruleTenant(r), id, r})
		}
	}
	slices.SortStableFunc(c.leaves, func(a, b Step) int { return cmp.Compare(a.Tenant(), b.Tenant()) })
	for _, id := range sortedFunc(d.want.Hooks, compareChain) {
		if want, have := d.want.Hooks[id], d.hooks[id]; which(id) && !slices.Equal(want, have) {
			c.hooks = append(c.hooks, SetHook{id, want[0].Rule, hookRules(have)})
			d.hooks[id] = want
		}
	}
	return c
}
