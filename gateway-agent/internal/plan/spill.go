// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// chainSpill holds the exceptions from the tree of SNAT rules. It is there only
// while there are any.
const chainSpill = "EGW-SPILL" // nat: new connections from an address without free ports

// Spill sends those new connections of a tenant to one destination that would
// leave with From, out with To, another of the tenant's addresses. Connections
// that are there keep their address.
type Spill struct {
	Tenant      string // TenantID
	Protocol    uint8  // 6 (TCP) or 17 (UDP); for others there are no ports
	Destination netip.AddrPort
	From, To    netip.Addr
}

// spills adds the exceptions of a tenant. One that does not fit its addresses,
// or not any more, counts for nothing.
func (r ruleset) spills(n int, id string, egress []netip.Addr, list []Spill) {
	for _, s := range list {
		protocol := map[uint8]string{6: "tcp", 17: "udp"}[s.Protocol]
		if s.Tenant != id || protocol == "" || s.From == s.To || tenant.FamilyOf(s.Destination.Addr()) != r.family ||
			!slices.Contains(egress, s.From) || !slices.Contains(egress, s.To) {
			continue
		}
		match := fmt.Sprintf("-d %s/%d -p %s -m %s --dport %d -m mark --mark %#x/%#x -m comment --comment \"%s\" -j SNAT --to-source %s",
			s.Destination.Addr(), r.family.Bits(), protocol, protocol, s.Destination.Port(), Mark(r.host.MarkMask, n), r.host.MarkMask, id, s.To)
		for i, source := range buckets(r.family, len(egress)) {
			if egress[i%len(egress)] == s.From {
				r.except(source + match)
			}
		}
	}
}

// except adds a rule to the exceptions, and the jump that leads to them.
func (r ruleset) except(rule string) {
	at, snat := r.nat(chainSpill), r.nat(chainSNAT)
	if _, there := r.chains[at]; !there {
		rules := r.chains[snat]
		r.chains[snat] = slices.Insert(slices.Clone(rules), len(rules)-1, r.spillJump())
	}
	r.chains[at] = append(r.chains[at], rule)
}

func (r ruleset) spillJump() string { return "-o " + r.host.External + " -j " + chainSpill }

// WithoutSpills returns s without exceptions: what the records alone ask for.
// The maps of s stay as they are.
func (s State) WithoutSpills() State {
	chains := make(map[ChainID][]string, len(s.Chains))
	for id, rules := range s.Chains {
		switch id.Name {
		case chainSpill:
			continue
		case chainSNAT:
			rules = slices.DeleteFunc(slices.Clone(rules), func(rule string) bool { return strings.HasSuffix(rule, " -j "+chainSpill) })
		}
		chains[id] = rules
	}
	s.Chains = chains
	return s
}
