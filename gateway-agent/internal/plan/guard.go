// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// The chains of the guard table.
const (
	GuardExit      = "exit"
	GuardOut       = "exit-out"    // of the exit guard: what leaves the external NIC
	GuardInside    = "exit-inside" // of the exit guard: from a tenant's link to elsewhere
	GuardAstray    = "exit-astray" // of the exit guard: right, but not by the tenant's link
	GuardInput     = "input"
	GuardMark      = "fast-mark" // marks new connections, ahead of the tree of iptables, and drops spoofed ones
	GuardTranslate = "fast-snat" // translates them, ahead of the other tree
	GuardWatch     = "watch"     // counts what is not as it should be
	GuardStrays    = "strays"    // of watch: what came by the internal NIC itself
	GuardWrong     = "wrong"     // of watch: what the rules of iptables are going to refuse
	GuardDenied    = "denied"    // what the exit guard drops
	GuardUninvited = "uninvited" // what the input guard drops, of what is for a tenant's address
)

// GuardChains declares the chains. The exit guard runs behind source NAT
// (priority 100), the last moment before a new connection is confirmed: a
// packet that is dropped there leaves no entry, so that the same flow heals.
// Only the first packet of a connection meets the chains of type nat, as long as
// it leaves nothing: of a connection that is refused, all do.
func GuardChains() map[string]string {
	return map[string]string{
		GuardExit:      "type filter hook postrouting priority 300; policy accept;",
		GuardOut:       "",
		GuardInside:    "",
		GuardAstray:    "",
		GuardInput:     "type filter hook input priority -10; policy accept;",
		GuardMark:      "type nat hook prerouting priority -101; policy accept;",
		GuardTranslate: "type nat hook postrouting priority 99; policy accept;",
		GuardWatch:     "type filter hook forward priority -10; policy accept;",
		GuardStrays:    "",
		GuardWrong:     "",
		GuardDenied:    "",
		GuardUninvited: "",
	}
}

// The sets of the guard, for one family each: names end in 4 or 6.
const (
	setPods   = "pods"   // pod networks and node subnets, as intervals
	setNodes  = "nodes"  // addresses of nodes
	setOwners = "owners" // link . mark . egress IP
	setStale  = "stale"  // mark . egress IP
)

// GuardSetTypes declares the sets and maps: their nft type and flags, by name.
func GuardSetTypes() map[string]string {
	out := countedSetTypes()
	maps.Copy(out, mapTypes())
	for _, f := range tenant.Families() {
		t := fmt.Sprintf("ipv%d_addr", f)
		out[setName(setPods, f)] = "type " + t + "; flags interval;"
		out[setName(setNodes, f)] = "type " + t + ";"
		out[setName(setOwners, f)] = "type ifname . mark . " + t + ";"
		out[setName(setStale, f)] = "type mark . " + t + ";"
	}
	return out
}

func setName(kind string, f tenant.Family) string { return kind + strconv.Itoa(int(f)) }

// intervalSet tells the sets whose elements are prefixes.
func intervalSet(name string) bool {
	return name == setName(setPods, tenant.IPv4) || name == setName(setPods, tenant.IPv6)
}

// ownerElement is what lets a tenant's packets leave with ip: those that come
// through its own link. A packet that comes through another tenant's link does
// not pass: its pod belongs to that one now, whatever connection tracking
// remembers of the pod's address.
func ownerElement(link string, mark uint32, ip netip.Addr) string {
	return link + " . " + staleElement(mark, ip)
}

// staleElement lets those pass that come through the internal NIC itself, from a
// node whose neighbour entry is stale.
func staleElement(mark uint32, ip netip.Addr) string { return markText(mark) + " . " + ip.String() }

// markText writes a mark as nft and iptables do.
func markText(mark uint32) string { return "0x" + strconv.FormatUint(uint64(mark), 16) }

// guardRules returns the rules of the guard. They name sets only, so that they
// do not change with the tenants and the nodes.
//
// Each packet pays for each expression it meets, comparing the name of a NIC
// above all. Hence what is right, which nearly all packets are, is found right
// before anything else is looked for: in the first rule where it goes, in the
// second whether it is a reply, or the tenant's own. What wrong packets meet
// after that only sorts them by reason.
func guardRules(h Host) []GuardRule {
	g := guardBuilder{
		link: `iifname "` + LinkPrefix + `*"`, in: `"` + h.Internal + `"`, ext: `"` + h.External + `"`,
		mark: fmt.Sprintf("ct mark & %#x", h.MarkMask), packetMark: fmt.Sprintf("meta mark & %#x", h.MarkMask),
	}
	g.exit()
	g.out()
	g.inside()
	g.denied()
	g.input()
	g.watch()
	g.fast()
	return g.rules
}

// guardBuilder collects the rules of the guard from matches that they share.
type guardBuilder struct {
	link, in, ext, mark, packetMark string

	rules []GuardRule
}

func (g *guardBuilder) add(chain, what, match, verdict string) {
	sum := sha256.Sum256([]byte(chain + match + verdict))
	comment := what + " #" + hex.EncodeToString(sum[:3])
	g.rules = append(g.rules, GuardRule{chain, comment, strings.TrimSpace(match+" "+verdict) + ` comment "` + comment + `"`})
}

// drop drops in a chain of the exit guard, where tenants' packets are counted by
// tenant as well.
func (g *guardBuilder) drop(chain, what, match string) {
	g.add(chain, what, match, "counter goto "+GuardDenied)
}

// ipWord is how nft names the header of a family.
func ipWord(f tenant.Family) string {
	if f == tenant.IPv6 {
		return "ip6"
	}
	return "ip"
}

func (g *guardBuilder) exit() {
	g.add(GuardExit, "to the outside", "oifname "+g.ext, "goto "+GuardOut)
	g.add(GuardExit, "a reply from the outside", "iifname "+g.ext+" ct direction reply", "accept")
	g.add(GuardExit, "tenant link to elsewhere", g.link, "goto "+GuardInside)
	g.podSource(GuardExit)
	g.add(GuardExit, "hairpin past the tenant's link", "iifname "+g.in+" "+g.mark+" != 0", "goto "+GuardAstray)
}

func (g *guardBuilder) podSource(chain string) {
	for _, f := range tenant.Families() {
		g.drop(chain, "pod source "+f.String(), ipWord(f)+" saddr @"+setName(setPods, f))
	}
}

func (g *guardBuilder) out() {
	for _, f := range tenant.Families() {
		g.add(GuardOut, "a tenant's own "+f.String(), g.owned(ipWord(f)+" saddr ", "@"+setName(setOwners, f)), "accept")
	}
	for _, f := range tenant.Families() {
		past := "iifname " + g.in + " " + g.mark + " . " + ipWord(f) + " saddr @" + setName(setStale, f)
		g.add(GuardOut, "a tenant's own past its link "+f.String(), past, "goto "+GuardAstray)
		g.astray(f)
	}
	g.drop(GuardOut, "tenant link without mark", g.link+" "+g.mark+" == 0")
	g.drop(GuardOut, "reply without a way back", "ct direction reply "+g.mark+" != 0")
	g.podSource(GuardOut)
	for _, f := range tenant.Families() {
		saddr := ipWord(f) + " saddr "
		// A reset or ICMP error to a pod whose node has no route would follow
		// the default route.
		g.drop(GuardOut, "pod destination "+f.String(), ipWord(f)+" daddr @"+setName(setPods, f))
		g.drop(GuardOut, "node source "+f.String(), saddr+"@"+setName(setNodes, f))
		g.drop(GuardOut, "source not the tenant's "+f.String(), g.mark+" != 0 "+g.owned(saddr, "!= @"+setName(setOwners, f)))
	}
	// Whoever keeps packets from connection tracking: they have no mark, not
	// even none, and match nothing above.
	g.drop(GuardOut, "tenant link untracked", g.link)
}

// owned matches link, mark and source with an owners set.
func (g *guardBuilder) owned(saddr, set string) string {
	return "iifname . " + g.mark + " . " + saddr + set
}

func (g *guardBuilder) inside() {
	// Neighbour discovery's own packets have the link they leave through as
	// their input interface as well.
	g.drop(GuardInside, "tenant link to another NIC", `oifname != "`+LinkPrefix+`*" oifname != `+g.in)
	g.drop(GuardInside, "tenant link hairpin untracked", "oifname "+g.in+" ct state untracked")
	g.drop(GuardInside, "tenant link hairpin untranslated", "oifname "+g.in+" ct status & snat == 0")
	g.podSource(GuardInside)
}

// input leaves the VM nothing but ICMP at tenants' addresses. Those of the packets
// that it drops get the mark of the tenant whose address they are for. What comes
// from outside with the source of a pod is not answered at any address: the answer
// would go to the pod.
func (g *guardBuilder) input() {
	const fresh = "meta l4proto != { icmp, ipv6-icmp } ct state != { established, related }"
	for _, f := range tenant.Families() {
		whose := " meta mark set " + ipWord(f) + " daddr map @"
		g.add(GuardInput, "egress IP "+f.String(), fmt.Sprintf("meta nfproto ipv%d ", f)+fresh+whose+setName(mapEgress, f), "counter goto "+GuardUninvited)
		g.add(GuardInput, "gateway IP from outside "+f.String(), "iifname "+g.ext+whose+setName(mapGateways, f), "counter goto "+GuardUninvited)
	}
	for _, f := range tenant.Families() {
		g.add(GuardInput, "spoofed pod source "+f.String(), "iifname "+g.ext+" "+ipWord(f)+" saddr @"+setName(setPods, f), "counter drop")
	}
	// Counting can fail, and ends its rule then.
	g.add(GuardInput, "tenant link counted", g.link+" "+fresh, refusedBy(RefusedInput))
	g.add(GuardInput, "tenant link", g.link+" "+fresh, "counter drop")
	g.add(GuardUninvited, "by a link", g.link, refusedBy(RefusedInput))
	g.add(GuardUninvited, "from outside", "iifname "+g.ext, "update @"+setRefused+` { "`+fromOutside+`" . `+g.packetMark+" counter }")
	g.add(GuardUninvited, "not for the VM", "", "drop")
}
