// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"slices"
)

// Unguarded is our gateway once its guards are taken away: what is left marks
// and translates, and lets anything leak. What it carries is the most that
// telling so many tenants apart allows, whatever guards cost.
const Unguarded = "unguarded"

// inOrder has Unguarded come last: it is measured on the gateway of Ours.
func inOrder(rules []string) []string {
	out := slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return r == Unguarded })
	if len(out) < len(rules) {
		out = append(out, Unguarded)
	}
	return out
}

// unguard takes the guards away from the gateway that the agent programmed.
func (t *topology) unguard(ctx context.Context, backend string) error {
	ns := t.gateway(Ours).ns
	if err := run(ctx, ns, "", iptables(t.family, backend), "-F", "FORWARD"); err != nil {
		return err
	}
	lines := ""
	for _, chain := range []string{"exit", "watch"} {
		at := " chain inet egw-guard " + chain + "\n"
		lines += "flush" + at + "delete" + at
	}
	return run(ctx, ns, lines, "nft", "-f", "-")
}
