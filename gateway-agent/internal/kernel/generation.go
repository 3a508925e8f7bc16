// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// rulesSeen is what was read of the rules, with the number that the kernel gave
// to the ruleset then. The kernel counts each transaction of nftables in the
// network namespace, whoever makes it: while the number is the same, so are the
// rules, and reading them again (most of what a look at 4,000 tenants takes)
// would give the same.
type rulesSeen struct {
	valid      bool
	generation uint32
	chains     map[plan.ChainID][]string
	hooks      map[plan.ChainID][]plan.Hook
	guard      plan.Guard
}

// observeRules adds the iptables chains and the guard. What iptables-legacy
// writes is not counted, and is read each time.
func (k *Kernel) observeRules(ctx context.Context, s *plan.State) error {
	before, counted := rulesGeneration()
	seen := &k.seen
	if counted == nil && seen.valid && seen.generation == before {
		maps.Copy(s.Chains, seen.chains)
		maps.Copy(s.Hooks, seen.hooks)
		s.Guard = seen.guard
	} else {
		seen.valid = false
		for f, t := range k.tables {
			if t.legacy() {
				continue
			}
			if err := t.observe(ctx, f, s); err != nil {
				return err
			}
		}
		var err error
		if s.Guard, err = k.observeGuard(ctx); err != nil {
			return err
		}
		// A transaction between the two may or may not be in what was read.
		if after, err := rulesGeneration(); counted == nil && err == nil && after == before {
			*seen = rulesSeen{true, after, maps.Clone(s.Chains), maps.Clone(s.Hooks), s.Guard}
		}
	}
	for f, t := range k.tables {
		if !t.legacy() {
			continue
		}
		if err := t.observe(ctx, f, s); err != nil {
			return err
		}
	}
	return nil
}

const (
	nftMsgGetGen = 16 // NFT_MSG_GETGEN (linux/netfilter/nf_tables.h)
	nftaGenID    = 1  // NFTA_GEN_ID, big endian
)

// rulesGeneration returns the number of the nftables ruleset in force.
func rulesGeneration() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|nftMsgGetGen, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of the rules: %w", err)
	}
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == nftaGenID && len(a.Value) >= 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("the kernel did not tell the generation of its rules")
}
