// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// given is a mark that packets of one family get.
type given struct {
	family tenant.Family
	mark   uint32
}

// marked returns the marks that packets get now, by trees or maps.
func (w *world) marked() map[given]bool {
	out := make(map[given]bool)
	for id, rules := range w.state.Chains {
		for _, r := range rules {
			link, _ := ruleValue(r, "-i")
			if m, ok := ruleMark(r); ok && isTree(id.Name, chainMTree) && w.state.Links[link].Ready {
				out[given{id.Family, m}] = true
			}
		}
	}
	for _, f := range tenant.Families() {
		for e := range w.state.Guard.Sets[setName(mapLinks, f)] {
			link, mark, _ := strings.Cut(e, " : ")
			if m, ok := parseMark(mark); ok && w.state.Links[link].Ready {
				out[given{f, m}] = true
			}
		}
	}
	return out
}

// translated returns the marks that have a translation now.
func (w *world) translated() map[given]bool {
	out := make(map[given]bool)
	for b := range boundIn(w.state.Chains) {
		out[given{tenant.FamilyOf(b.ip), b.mark}] = true
	}
	for _, f := range tenant.Families() {
		for e := range w.state.Guard.Sets[setName(mapTranslate, f)] {
			out[given{f, parseTranslate(e).mark}] = true
		}
	}
	return out
}

// crossing watches for packets that are marked and would leave untranslated,
// were it not for the exit guard: also for those that got their mark before a row
// of steps, which the kernel takes at once, and are translated, or not, after it.
type crossing struct {
	marked, translated map[given]bool
}

func (w *world) crossing() crossing { return crossing{w.marked(), w.translated()} }

func (c *crossing) next(w *world) error {
	now := w.crossing()
	for g := range c.marked {
		if c.translated[g] && !now.translated[g] {
			return fmt.Errorf("%s packets with mark %#x that are on their way are not translated any more", g.family, g.mark)
		}
	}
	for g := range now.marked {
		if !c.marked[g] && !now.translated[g] {
			return fmt.Errorf("%s packets with mark %#x are not translated yet", g.family, g.mark)
		}
	}
	*c = now
	return nil
}

// rowEnds tells whether the kernel does not take step i together with the next.
func rowEnds(steps []Step, i int) bool {
	if i+1 == len(steps) {
		return true
	}
	a, b := steps[i], steps[i+1]
	return !(IsRule(a) && IsRule(b) || NFTLines(a) != nil && NFTLines(b) != nil)
}
