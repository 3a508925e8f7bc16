// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"egress-gateway.io/shared/tenant"
)

// The chains of the guard table.
const (
	GuardExit  = "exit"
	GuardInput = "input"
)

// GuardChains declares the base chains. The exit guard runs behind source NAT
// (priority 100), the last moment before a new connection is confirmed: a
// packet that is dropped there leaves no entry, so that the same flow heals.
func GuardChains() map[string]string {
	return map[string]string{
		GuardExit:  "type filter hook postrouting priority 300; policy accept;",
		GuardInput: "type filter hook input priority -10; policy accept;",
	}
}

// The sets of the guard, for one family each: names end in 4 or 6.
const (
	setPods     = "pods"     // pod networks and node subnets, as intervals
	setNodes    = "nodes"    // addresses of nodes
	setGateways = "gateways" // gateway IPs
	setEgress   = "egress"   // egress IPs
	setOwners   = "owners"   // link . mark . egress IP
)

// GuardSetTypes declares the sets: their nft type and flags, by name.
func GuardSetTypes() map[string]string {
	out := make(map[string]string)
	for _, f := range tenant.Families() {
		t := fmt.Sprintf("ipv%d_addr", f)
		out[setName(setPods, f)] = "type " + t + "; flags interval;"
		out[setName(setNodes, f)] = "type " + t + ";"
		out[setName(setGateways, f)] = "type " + t + ";"
		out[setName(setEgress, f)] = "type " + t + ";"
		out[setName(setOwners, f)] = "type ifname . mark . " + t + ";"
	}
	return out
}

func setName(kind string, f tenant.Family) string { return fmt.Sprintf("%s%d", kind, f) }

// intervalSet tells the sets whose elements are prefixes.
func intervalSet(name string) bool {
	return name == setName(setPods, tenant.IPv4) || name == setName(setPods, tenant.IPv6)
}

// ownerElements are the elements of an owners set that let a tenant's packets
// leave with ip: those that came through its own link, and those of a node
// whose neighbour entry is stale, which come through the internal NIC. A packet
// that comes through another tenant's link does not pass: its pod belongs to
// that one now, whatever connection tracking remembers of the pod's address.
func ownerElements(link, internal string, mark uint32, ip netip.Addr) []string {
	return []string{link + ownerSuffix(mark, ip), internal + ownerSuffix(mark, ip)}
}

func ownerSuffix(mark uint32, ip netip.Addr) string { return fmt.Sprintf(" . %#x . %s", mark, ip) }

// guardRules returns the rules of the guard. They name sets only, so that they
// do not change with the tenants and the nodes.
func guardRules(h Host) []GuardRule {
	var out []GuardRule
	add := func(chain, what, match string) {
		sum := sha256.Sum256([]byte(chain + match))
		comment := what + " #" + hex.EncodeToString(sum[:3])
		out = append(out, GuardRule{chain, comment, match + ` counter drop comment "` + comment + `"`})
	}
	link, in, ext := `iifname "`+LinkPrefix+`*"`, `"`+h.Internal+`"`, `"`+h.External+`"`
	mark := fmt.Sprintf("ct mark & %#x", h.MarkMask)

	// Neighbour discovery's own packets have the link they leave through as
	// their input interface as well.
	add(GuardExit, "tenant link to another NIC", link+` oifname != "`+LinkPrefix+`*" oifname != { `+in+", "+ext+" }")
	add(GuardExit, "tenant link without mark", link+" oifname "+ext+" "+mark+" == 0")
	add(GuardExit, "tenant link hairpin untranslated", link+" oifname "+in+" ct status & snat == 0")
	add(GuardExit, "reply without a way back", "oifname "+ext+" ct direction reply "+mark+" != 0")
	for _, f := range tenant.Families() {
		ip := "ip"
		if f == tenant.IPv6 {
			ip = "ip6"
		}
		saddr, daddr := ip+" saddr ", ip+" daddr "
		pods, nodes, owners := "@"+setName(setPods, f), "@"+setName(setNodes, f), "@"+setName(setOwners, f)
		add(GuardExit, "pod source "+f.String(), saddr+pods)
		// A reset or ICMP error to a pod whose node has no route would follow
		// the default route.
		add(GuardExit, "pod destination "+f.String(), "oifname "+ext+" "+daddr+pods)
		add(GuardExit, "node source "+f.String(), "oifname "+ext+" "+saddr+nodes)
		add(GuardExit, "source not the tenant's "+f.String(), "oifname "+ext+" "+mark+" != 0 iifname . "+mark+" . "+saddr+"!= "+owners)

		const fresh = " ct state != { established, related }"
		add(GuardInput, "egress IP "+f.String(), daddr+"@"+setName(setEgress, f)+" meta l4proto != { icmp, ipv6-icmp }"+fresh)
		add(GuardInput, "gateway IP from outside "+f.String(), "iifname "+ext+" "+daddr+"@"+setName(setGateways, f))
	}
	add(GuardInput, "tenant link", link+" meta l4proto != { icmp, ipv6-icmp } ct state != { established, related }")
	return out
}
