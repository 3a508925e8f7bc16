// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"maps"
	"slices"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

const (
	// disturbedEvery is for how long steps are carried out without a question
	// whether the guards stand; disturbedShare how many times as long as the
	// answer took, where it takes more than the number of the ruleset.
	disturbedEvery = 50 * time.Millisecond
	disturbedShare = 10
)

// watched is what is known of the guards between two looks.
type watched struct {
	// generation of a ruleset in which they stood as the last look, and the steps
	// since, have left them.
	generation uint32
	next       time.Time // to ask again
}

// looked notes a look that read everything, or knew it unchanged.
func (w *watched) looked(generation uint32, valid bool) {
	if valid {
		w.generation = generation
	}
	w.next = time.Now().Add(disturbedEvery)
}

// disturbed tells whether somebody else has changed a guard since the last look:
// a row of steps may take seconds, and was planned for guards that stand. As long
// as nobody changes any rule, it costs a request every now and then, and a look
// at the fingerprints of iptables-legacy.
func (k *Kernel) disturbed(ctx context.Context) bool {
	began := time.Now()
	if k.seen.chains == nil || began.Before(k.watched.next) {
		return false
	}
	generation, err := k.rulesGeneration()
	changed := func(f tenant.Family) bool { return !k.legacySame(f) }
	if err == nil && generation == k.watched.generation && !slices.ContainsFunc(k.legacyFamilies(), changed) {
		k.watched.next = began.Add(disturbedEvery)
		return false
	}
	stand, err := k.guardsStand(ctx)
	k.watched.next = time.Now().Add(max(disturbedEvery, disturbedShare*time.Since(began)))
	switch {
	case err != nil:
		k.log.Warn("the guards can not be looked at while the kernel is changed; going on", "err", err)
	case stand:
		k.watched.generation = generation
	default:
		k.seen.valid = false
		k.log.Warn("somebody else has changed a guard while the kernel was changed; it is put back first")
		return true
	}
	return false
}

// guardsStand compares the guards with what the last look, and the steps since,
// have left: the table of nftables, and the chains of iptables' filter table.
func (k *Kernel) guardsStand(ctx context.Context) (bool, error) {
	guard, err := k.readGuard(ctx)
	if err != nil {
		return false, err
	}
	if !guard.Same(k.seen.guard) {
		return false, nil
	}
	now := plan.State{Chains: make(map[plan.ChainID][]string), Hooks: make(map[plan.ChainID][]plan.Hook)}
	for f, t := range k.tables {
		if err := t.observe(ctx, f, &now, "-t", "filter"); err != nil {
			return false, err
		}
	}
	other := func(id plan.ChainID) bool { return id.Table != "filter" }
	chains, hooks := maps.Clone(k.seen.chains), maps.Clone(k.seen.hooks)
	maps.DeleteFunc(chains, func(id plan.ChainID, _ []string) bool { return other(id) })
	maps.DeleteFunc(hooks, func(id plan.ChainID, _ []plan.Hook) bool { return other(id) })
	return maps.EqualFunc(now.Chains, chains, slices.Equal[[]string]) && maps.EqualFunc(now.Hooks, hooks, slices.Equal[[]plan.Hook]), nil
}
