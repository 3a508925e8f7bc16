// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// maxUnruled is how many deletions of rules go to the kernel without
// iptables-restore.
const maxUnruled = 64

// deletionsOnly tells rows that only delete rules and chains of ours, and few of
// them. iptables-nft-restore takes 20 to 40 ms for these: it reads the rules
// first, and ends only when all processors have forgotten those that went.
func deletionsOnly(steps []plan.Step) bool {
	for _, s := range steps {
		switch s.(type) {
		case plan.DelRule, plan.DelChain:
		default:
			return false
		}
	}
	return len(steps) <= maxUnruled
}

// unrule carries out such a row of one family in one transaction, for all tables
// together. It needs the rules as they are, and reports whether it knew them:
// else nothing is done.
func (k *Kernel) unrule(f tenant.Family, steps []plan.Step) (known bool, err error) {
	gone, err := k.locate(steps)
	if err != nil || gone == nil {
		return false, err
	}
	// A handle is never given again: what changes from here on does no harm.
	if generation, err := k.rulesGeneration(); err != nil || !k.seen.valid || k.seen.generation != generation {
		return false, nil
	}
	return true, k.following(steps, 1, func() error {
		return k.withNFT(func(c *nftables.Conn) error {
			for _, s := range steps {
				switch s := s.(type) {
				case plan.DelRule:
					table := iptablesTable(f, s.ID.Table)
					rule := &nftables.Rule{Table: table, Chain: &nftables.Chain{Name: s.ID.Name, Table: table}, Handle: gone[s]}
					if err := c.DelRule(rule); err != nil {
						return err
					}
				case plan.DelChain: // with its rules
					c.DelChain(&nftables.Chain{Name: s.ID.Name, Table: iptablesTable(f, s.ID.Table)})
				}
			}
			return nil
		})
	})
}

func iptablesTable(f tenant.Family, name string) *nftables.Table {
	if f == tenant.IPv6 {
		return &nftables.Table{Family: nftables.TableFamilyIPv6, Name: name}
	}
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: name}
}

// locate returns the kernel's handles of the rules to delete: the kernel lists
// those of a chain in the order in which seen has them. It returns nil if one is
// not found.
func (k *Kernel) locate(steps []plan.Step) (map[plan.DelRule]uint64, error) {
	handles, out := make(map[plan.ChainID][]uint64), make(map[plan.DelRule]uint64)
	for _, s := range steps {
		s, ok := s.(plan.DelRule)
		if !ok {
			continue
		}
		if _, read := handles[s.ID]; !read {
			list, err := k.ruleHandles(s.ID)
			if err != nil {
				return nil, err
			}
			handles[s.ID] = list
		}
		rules := k.seen.chains[s.ID]
		at := slices.Index(rules, s.Rule)
		if _, twice := out[s]; twice || at < 0 || len(rules) != len(handles[s.ID]) {
			return nil, nil
		}
		out[s] = handles[s.ID][at]
	}
	return out, nil
}

const (
	nftMsgGetRule = 7 // NFT_MSG_GETRULE (linux/netfilter/nf_tables.h)
	nftaRuleTable = 1 // NFTA_RULE_TABLE
	nftaRuleChain = 2 // NFTA_RULE_CHAIN
	nftaRuleID    = 3 // NFTA_RULE_HANDLE, big endian
)

// ruleHandles lists the handles of a chain's rules, in their order.
func (k *Kernel) ruleHandles(id plan.ChainID) ([]uint64, error) {
	family := uint8(unix.AF_INET)
	if id.Family == tenant.IPv6 {
		family = unix.AF_INET6
	}
	return consistent(func() (out []uint64, err error) {
		err = askNFT(k.sockets, nftMsgGetRule, unix.NLM_F_DUMP, family, func(a syscall.NetlinkRouteAttr) {
			if a.Attr.Type == nftaRuleID && len(a.Value) == 8 {
				out = append(out, binary.BigEndian.Uint64(a.Value))
			}
		}, nl.NewRtAttr(nftaRuleTable, nl.ZeroTerminated(id.Table)), nl.NewRtAttr(nftaRuleChain, nl.ZeroTerminated(id.Name)))
		if err != nil {
			return nil, fmt.Errorf("list the rules of %s: %w", id.Name, err)
		}
		return out, nil
	})
}
