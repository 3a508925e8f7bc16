// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// rulesSeen is what is known of the rules, with the number that the kernel gave
// to the ruleset then. The kernel counts each transaction of nftables in the
// network namespace, whoever makes it: while the number is the same, so are the
// rules, and reading them again (most of what a look at 4,000 tenants takes)
// would give the same.
type rulesSeen struct {
	valid      bool
	generation uint32
	// derived says that steps were carried over since the rules were read.
	derived    bool
	chains     map[plan.ChainID][]string
	hooks      map[plan.ChainID][]plan.Hook
	guard      plan.Guard
	neighbours plan.Neighbours
}

// rulesLook is a look at the rules that is under way: what has to be read, the
// programs read beside whatever else the caller does.
type rulesLook struct {
	known      bool   // the rules, but those of iptables-legacy, are as they were seen
	before     uint32 // their number
	counted    error
	save       map[tenant.Family]*command
	prints     map[tenant.Family]uint64 // of iptables-legacy, before that
	neighbours bool                     // are to be read
}

// startRules begins a look at the rules. Nobody counts what iptables-legacy does
// to its own: they are compared with their fingerprints. All are read afresh, if
// steps were carried over since, and the neighbours where a NIC may have taken
// them away.
func (k *Kernel) startRules(ctx context.Context, afresh, neighbours bool) *rulesLook {
	l := &rulesLook{save: make(map[tenant.Family]*command), prints: make(map[tenant.Family]uint64)}
	l.before, l.counted = k.rulesGeneration()
	l.known = l.counted == nil && k.seen.valid && k.seen.generation == l.before && !(afresh && k.seen.derived)
	for f, t := range k.tables {
		if !l.known || t.legacy() && !k.legacySame(f) {
			if t.legacy() {
				l.prints[f], _ = k.prints.of(f, k.seen.chains)
			}
			l.save[f] = start(ctx, nil, t.save)
		}
	}
	l.neighbours = !l.known || neighbours || k.seen.neighbours.Shape == ""
	return l
}

// finishRules brings seen up to date, and tells whether it was. It waits for all
// that was started. If it fails, or ctx has ended, seen is as it was.
func (k *Kernel) finishRules(ctx context.Context, l *rulesLook) (same bool, err error) {
	now := k.seen
	if !l.known && ctx.Err() == nil {
		now.guard, err = k.readGuard(ctx)
	}
	if l.neighbours && ctx.Err() == nil {
		var failed error
		now.neighbours, failed = k.readNeighbours(ctx)
		err = errors.Join(err, failed)
	}
	if len(l.save) > 0 {
		now.chains, now.hooks = make(map[plan.ChainID][]string), make(map[plan.ChainID][]plan.Hook)
	}
	for f := range k.tables {
		switch c, read := l.save[f]; {
		case read:
			out, failed := c.wait()
			if ctx.Err() != nil {
				out = nil
			}
			err = errors.Join(err, failed, parseSave(bytes.NewReader(out), f, &plan.State{Chains: now.chains, Hooks: now.hooks}))
		case len(l.save) > 0:
			carryFamily(&now, k.seen, f)
		}
	}
	if err := errors.Join(err, ctx.Err()); err != nil {
		return false, err
	}
	for f, before := range l.prints {
		delete(k.prints.seen, f)
		if after, ok := k.prints.of(f, now.chains); ok && after == before {
			k.prints.seen[f] = after
		}
	}
	// A transaction between the two may or may not be in what was read.
	after, failed := k.rulesGeneration()
	now.valid = l.counted == nil && failed == nil && after == l.before
	now.generation, now.derived = after, l.known && k.seen.derived
	k.watched.looked(after, now.valid)
	k.rules.looked(l.before, l.counted == nil)
	old := k.seen
	k.seen = now
	if len(l.save) == 0 && !l.neighbours && l.known {
		return true, nil
	}
	return old.chains != nil && now.equal(old), nil
}

// legacyFamilies are those whose rules stand where the kernel does not count
// changes.
func (k *Kernel) legacyFamilies() []tenant.Family {
	var out []tenant.Family
	for f, t := range k.tables {
		if t.legacy() {
			out = append(out, f)
		}
	}
	return out
}

// carryFamily takes over the chains of a family that need not be read.
func carryFamily(now *rulesSeen, old rulesSeen, f tenant.Family) {
	for id, rules := range old.chains {
		if id.Family == f {
			now.chains[id] = rules
		}
	}
	for id, hooks := range old.hooks {
		if id.Family == f {
			now.hooks[id] = hooks
		}
	}
}

// equal compares the rules, not the numbers.
func (r rulesSeen) equal(o rulesSeen) bool {
	return maps.EqualFunc(r.chains, o.chains, slices.Equal[[]string]) && maps.EqualFunc(r.hooks, o.hooks, slices.Equal[[]plan.Hook]) &&
		r.guard.Same(o.guard) && r.neighbours.Shape == o.neighbours.Shape &&
		maps.Equal(r.neighbours.MACs, o.neighbours.MACs)
}

// following carries out f, which takes steps to the kernel in so many
// transactions of nftables, and keeps seen true: if the kernel has counted just
// these, the rules are what they were, changed by the steps. Else they are read
// again by the next look.
func (k *Kernel) following(steps []plan.Step, transactions int, f func() error) error {
	before, err := k.rulesGeneration()
	known := err == nil && k.seen.valid && k.seen.generation == before
	undisturbed := err == nil && k.watched.generation == before
	k.seen.valid = false
	if err := f(); err != nil {
		return err
	}
	for _, s := range steps {
		k.seen.carry(s)
	}
	after, err := k.rulesGeneration()
	if err != nil || after != before+uint32(transactions) {
		return nil
	}
	k.rules.followed(before, after)
	if undisturbed {
		k.watched.generation = after
	}
	if known {
		k.seen.valid, k.seen.derived, k.seen.generation = true, true, after
	}
	return nil
}

// carry changes what is known as the step has changed the kernel.
func (r *rulesSeen) carry(step plan.Step) {
	if r.chains == nil {
		return // nothing was read yet
	}
	switch s := step.(type) {
	case plan.NewChain:
		r.chains[s.ID] = nil
	case plan.DelChain:
		delete(r.chains, s.ID)
	case plan.SetChain:
		r.chains[s.ID] = s.Rules
	case plan.AddRule:
		r.chains[s.ID] = append(slices.Clip(r.chains[s.ID]), s.Rule)
	case plan.DelRule:
		if i := slices.Index(r.chains[s.ID], s.Rule); i >= 0 {
			r.chains[s.ID] = slices.Concat(r.chains[s.ID][:i], r.chains[s.ID][i+1:])
		}
	case plan.SetHook:
		delete(r.hooks, s.ID)
		if s.Rule != "" {
			r.hooks[s.ID] = []plan.Hook{{Position: 1, Rule: s.Rule}}
		}
	case plan.SetGuard:
		r.guard = observed(s.Guard)
	case plan.DelGuard:
		r.guard = plan.Guard{Sets: make(map[string]plan.GuardSet)}
	case plan.SetElements:
		set := make(plan.GuardSet, len(s.Elements))
		for _, e := range s.Elements {
			set[e] = ""
		}
		r.guard.Sets[s.Set] = set
	case plan.AddElement:
		if r.guard.Sets[s.Set] == nil {
			r.guard.Sets[s.Set] = make(plan.GuardSet)
		}
		r.guard.Sets[s.Set][s.Element] = ""
	case plan.DelElement:
		delete(r.guard.Sets[s.Set], s.Element)
	case plan.SetNeighbours:
		r.neighbours = plan.Neighbours{Shape: s.Neighbours.Shape, MACs: maps.Clone(s.Neighbours.MACs)}
	case plan.DelNeighbours:
		r.neighbours = plan.Neighbours{MACs: make(map[netip.Addr]string)}
	case plan.AddNeighbour:
		r.neighbours.MACs[s.IP] = s.MAC
	case plan.DelNeighbour:
		delete(r.neighbours.MACs, s.IP)
	}
}

// observed is a guard as it is seen once it is there.
func observed(g plan.Guard) plan.Guard {
	out := plan.Guard{Sets: make(map[string]plan.GuardSet, len(g.Sets))}
	for _, r := range g.Rules {
		r.Text = ""
		out.Rules = append(out.Rules, r)
	}
	for name, set := range g.Sets {
		out.Sets[name] = make(plan.GuardSet, len(set))
		for e := range set {
			out.Sets[name][e] = ""
		}
	}
	return out
}

const (
	nftMsgGetGen = 16 // NFT_MSG_GETGEN (linux/netfilter/nf_tables.h)
	nftaGenID    = 1  // NFTA_GEN_ID, big endian
)

// rulesGeneration returns the number of the nftables ruleset in force.
func (k *Kernel) rulesGeneration() (uint32, error) { return rulesGeneration(k.sockets) }

func rulesGeneration(sockets map[int]*nl.SocketHandle) (uint32, error) {
	generation, told := uint32(0), false
	err := askNFT(sockets, nftMsgGetGen, 0, unix.AF_UNSPEC, func(a syscall.NetlinkRouteAttr) {
		if a.Attr.Type == nftaGenID && len(a.Value) >= 4 {
			generation, told = binary.BigEndian.Uint32(a.Value), true
		}
	})
	if err == nil && !told {
		err = errors.New("the kernel did not tell it")
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	return generation, nil
}

// askNFT sends a request to nftables, over a socket that is open, and hands over
// each attribute of the answers.
func askNFT(sockets map[int]*nl.SocketHandle, kind, flags int, family uint8, each func(syscall.NetlinkRouteAttr), about ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	req.Sockets = sockets
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	for _, a := range about {
		req.AddData(a)
	}
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return err
		}
		for _, a := range attrs {
			each(a)
		}
	}
	return nil
}
