// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// odd ends the name of a set that is seen beside one that holds what no plan can
// write or change element by element, and is that of one that is seen where the
// whole table is switched off. No plan has a set of that name, so that the guard
// is made anew.
const odd = "!"

// readGuard reads the guard. If ctx ends it gives up soon.
func (k *Kernel) readGuard(ctx context.Context) (plan.Guard, error) {
	return atOnce(ctx, k, func() (plan.Guard, error) {
		g, l := plan.Guard{Sets: make(map[string]plan.GuardSet)}, nftList{k.lists, guardTable()}
		rules, err := l.rules()
		if err != nil {
			return g, err
		}
		for _, r := range rules {
			g.Rules = append(g.Rules, plan.GuardRule{Chain: r.chain, Comment: r.comment})
		}
		if dormant, err := l.dormant(); err != nil {
			return g, err
		} else if dormant {
			g.Sets[odd] = plan.GuardSet{}
		}
		sets, _, err := l.sets()
		for _, s := range sets {
			set, plain, failed := k.readGuardSet(l, s)
			if failed = errors.Join(failed, ctx.Err()); failed != nil {
				return g, failed
			}
			g.Sets[s.name] = set
			if !plain {
				g.Sets[s.name+odd] = plan.GuardSet{}
			}
		}
		return g, err
	})
}

// readGuardSet reads the elements of a set of the guard. plain is false if it
// holds what no plan makes.
func (k *Kernel) readGuardSet(l nftList, s nftSet) (set plan.GuardSet, plain bool, err error) {
	declaration, known := plan.GuardSetTypes()[s.name]
	if !known || plan.CountedSet(s.name) {
		return plan.GuardSet{}, true, nil
	}
	layout, err := parseLayout(declaration)
	if err != nil {
		return nil, false, err
	}
	r := setReader{layout: layout, plain: s.shape == layout.shape()}
	if err := l.elements(s.name, func(element []byte) error { r.take(element); return nil }); err != nil {
		return nil, false, err
	}
	return r.set(len(k.seen.guard.Sets[s.name])), r.plain, nil
}

// setReader collects the elements of a set.
type setReader struct {
	layout setLayout
	plain  bool
	texts  []byte // one after the other: thousands of strings would each be an allocation
	ends   []int  // of each in texts
	bounds []interval
}

func (r *setReader) take(element []byte) {
	e, ok := parseElement(element)
	if ok && r.layout.intervals {
		at, is := netip.AddrFromSlice(e.key)
		ok = is && len(e.key) == r.layout.key[0].size() && e.value == nil
		r.bounds = append(r.bounds, interval{at, e.end})
	} else if ok {
		r.texts, ok = r.layout.appendElement(r.texts, e)
		ok = ok && !e.end
		r.ends = append(r.ends, len(r.texts))
	}
	r.plain = r.plain && ok
}

// set returns what was collected; about size elements are expected.
func (r *setReader) set(size int) plan.GuardSet {
	set := make(plan.GuardSet, max(size, len(r.ends)))
	texts, from := string(r.texts), 0
	for _, to := range r.ends {
		set[texts[from:to]] = ""
		from = to
	}
	for _, p := range prefixes(r.bounds) {
		set[p] = ""
	}
	return set
}

// applyGuard carries out guard steps in one transaction.
func (k *Kernel) applyGuard(ctx context.Context, steps []plan.Step) error {
	if elementsOnly(steps) {
		return k.applyElements(steps)
	}
	var lines []string
	for _, s := range steps {
		lines = append(lines, plan.NFTLines(s)...)
	}
	_, err := run(ctx, []byte(strings.Join(lines, "\n")+"\n"), k.nft, "-f", "-")
	return err
}

// guardCounters sums the packets that each rule of the guard dropped, by what
// the rule is for. Safe for concurrent use.
func (k *Kernel) guardCounters() (map[string]Counter, error) {
	rules, err := consistent(nftList{k.lists, guardTable()}.rules)
	if err != nil {
		return nil, fmt.Errorf("list the guard's rules: %w", err)
	}
	out := make(map[string]Counter)
	for _, r := range rules {
		if what, _, _ := strings.Cut(r.comment, " #"); r.counts {
			out[what] = out[what].plus(r.counted)
		}
	}
	return out, nil
}
