// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"math/bits"
	"net/netip"

	"egress-gateway.io/shared/tenant"
)

// The sets that the kernel fills by itself; plans only make them.
const (
	setStrays      = "strays"      // source . mark, for one family each
	setNodeSources = "nodesources" // marks
)

// strayTimeout is for how long a source counts as astray after its last packet.
const strayTimeout = "20s"

// CountedSet tells the sets whose elements the kernel adds.
func CountedSet(name string) bool {
	return name == setNodeSources || name == setRefused || name == setName(setStrays, tenant.IPv4) || name == setName(setStrays, tenant.IPv6)
}

// Stray is a pod whose packets arrive past the links, at the VM's own MAC: its
// node has a wrong neighbour entry for a gateway IP. Number is the tenant's, or
// 0 where its connection does not tell.
type Stray struct {
	Pod     netip.Addr
	Number  int
	Packets uint64 // since it went astray
}

// SetStrays returns the names of the sets that hold strays.
func SetStrays() []string {
	return []string{setName(setStrays, tenant.IPv4), setName(setStrays, tenant.IPv6)}
}

// SetNodeSources names the set that counts, for each mark, the connections that
// came through a tenant's link with a node's address.
func SetNodeSources() string { return setNodeSources }

// NumberOf is the inverse of Mark.
func NumberOf(mask, mark uint32) int { return int(mark & mask >> bits.TrailingZeros32(mask)) }

func countedSetTypes() map[string]string {
	out := map[string]string{
		setNodeSources: "type mark; flags dynamic; size 4096;",
		setRefused:     "type ifname . mark; flags dynamic; size 65535;",
	}
	for _, f := range tenant.Families() {
		out[setName(setStrays, f)] = fmt.Sprintf("type ipv%d_addr . mark; flags dynamic,timeout; timeout %s; size 65535;", f, strayTimeout)
	}
	return out
}

// watch counts what is not as it should be, before the rules of iptables refuse
// it. All that it costs a packet of a translated connection is a look at its
// status; new connections that are right leave it by the second rule.
func (g *guardBuilder) watch() {
	right := func(nic string) string { return g.packetMark + " != 0 oifname " + nic + " ct status & confirmed == 0" }
	g.add(GuardWatch, "a translated connection", "ct status & snat != 0", "accept")
	g.add(GuardWatch, "a new connection to the outside", right(g.ext), "accept")
	g.add(GuardWatch, "by the internal NIC itself", "iifname "+g.in, "goto "+GuardStrays)
	g.add(GuardWatch, "a new connection to the inside", right(g.in), "accept")
	g.add(GuardWatch, "not right", g.link, "goto "+GuardWrong)
	for _, f := range tenant.Families() {
		saddr := ipWord(f) + " saddr "
		g.add(GuardStrays, "past the tenant's link "+f.String(), saddr+"@"+setName(setPods, f),
			"update @"+setName(setStrays, f)+" { "+saddr+". "+g.mark+" counter }")
	}
	g.wrong()
}

// astray counts what came past a link, belongs to a connection that was
// translated before, and so passes all the same. Its source is the egress IP by now.
func (g *guardBuilder) astray(f tenant.Family) {
	word := ipWord(f)
	g.add(GuardAstray, "past the tenant's link "+f.String(), fmt.Sprintf("meta nfproto ipv%d", f),
		"update @"+setName(setStrays, f)+" { ct original "+word+" saddr . "+g.mark+" counter }")
}
