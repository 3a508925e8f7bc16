// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// The chains, by table. Those in upper case alone are ordered lists; the trees
// (EGW-M, EGW-S and their branches) and EGW-NODES are sets: the order of their
// rules does not matter, as no two of them match the same packet.
const (
	chainMark  = "EGW-MARK"   // nat: new connections from tenant links
	chainMTree = "EGW-M"      // nat: link name -> mark
	chainSNAT  = "EGW-SNAT"   // nat: new connections of tenants
	chainSTree = "EGW-S"      // nat: mark -> egress IP
	chainFwd   = "EGW-FWD"    // filter: everything forwarded
	chainOut   = "EGW-OUT"    // filter: what comes from pods
	chainExt   = "EGW-EXT"    // filter: what comes from outside
	chainNodes = "EGW-NODES"  // filter: new connections from outside to nodes
	chainRej   = "EGW-REJECT" // filter: what pods are told of
)

// ordered tells the chains whose rules have an order.
func ordered(name string) bool {
	switch name {
	case chainMark, chainSNAT, chainSpill, chainFwd, chainOut, chainExt, chainRej:
		return true
	}
	return false
}

// ruleset builds the chains of one family. Rules are written as iptables-save
// prints them, so that a second pass finds nothing to change.
type ruleset struct {
	host   Host
	family tenant.Family
	chains map[ChainID][]string
	hooks  map[ChainID][]Hook
}

func (r ruleset) nat(name string) ChainID    { return ChainID{r.family, "nat", name} }
func (r ruleset) filter(name string) ChainID { return ChainID{r.family, "filter", name} }

// marked, unmarked and connmarked match on the bits of the mark that are ours.
func (r ruleset) marked() string   { return fmt.Sprintf("-m mark ! --mark 0x0/%#x", r.host.MarkMask) }
func (r ruleset) unmarked() string { return fmt.Sprintf("-m mark --mark 0x0/%#x", r.host.MarkMask) }
func (r ruleset) connmarked() string {
	return fmt.Sprintf("-m connmark ! --mark 0x0/%#x", r.host.MarkMask)
}

// base adds the chains that do not depend on tenants. Marks are given in nat,
// which only the first packet of a connection meets: all others pay nothing for
// it. What the guard's maps have marked does not meet it either.
func (r ruleset) base(pods []netip.Prefix, nodes []netip.Addr) {
	in, ext := r.host.Internal, r.host.External
	r.hook(r.nat("PREROUTING"), "-i "+LinkPrefix+"+ "+r.unmarked()+" -j "+chainMark)
	r.hook(r.nat("POSTROUTING"), r.marked()+" -j "+chainSNAT)
	r.hook(r.filter("FORWARD"), "-j "+chainFwd)

	r.chains[r.nat(chainMark)] = []string{
		// What the tree finds is kept with the connection: the guards go by it,
		// and it is found by it when it has to end.
		"-j " + chainMTree,
		fmt.Sprintf("%s -j CONNMARK --save-mark --nfmask %#x --ctmask %#x", r.marked(), r.host.MarkMask, r.host.MarkMask),
	}
	r.chains[r.nat(chainMTree)] = nil
	r.chains[r.nat(chainSNAT)] = []string{
		// Hairpin: OVN sends a tenant's traffic to the node network here too.
		"-o " + in + " -j MASQUERADE",
		"-o " + ext + " -j " + chainSTree,
	}
	r.chains[r.nat(chainSTree)] = nil
	r.forward(pods, nodes)
}

// forward adds the forward guard. Nearly all packets belong to connections that
// are there; those are found right by the second rule they meet, in either
// direction, and by as few looks at connection tracking as can be: these cost
// most. What has no such connection is looked at closely after that.
func (r ruleset) forward(pods []netip.Prefix, nodes []netip.Addr) {
	in, ext := r.host.Internal, r.host.External
	translated := func(more string) string {
		return " -m conntrack --ctstate SNAT" + more + " " + r.connmarked() + " -j ACCEPT"
	}
	reply := "-o " + in + translated(" --ctdir REPLY")

	fwd := []string{"-i " + ext + " -j " + chainExt, "-o " + ext + translated(" --ctdir ORIGINAL"), "-i " + LinkPrefix + "+ -j " + chainOut}
	var outside []string
	for _, p := range pods {
		fwd = append(fwd, "-s "+p.String()+" -j "+chainOut)
		outside = append(outside, "-s "+p.String()+" -j DROP")
	}
	outside = append(outside, reply)
	// Back out to where it came from goes nothing: this is what is left of
	// connections of an egress IP that was released, and upstream would send it
	// here again for as long as it routes the address to us.
	outside = append(outside, "-o "+ext+" -j DROP")
	// A reply that would not go to the inside has lost its way back.
	outside = append(outside, r.connmarked()+" -j DROP")
	for _, p := range pods {
		outside = append(outside, "-d "+p.String()+" -j DROP")
	}
	r.chains[r.filter(chainFwd)] = append(fwd, reply)
	r.chains[r.filter(chainExt)] = append(outside, "-m conntrack --ctstate INVALID,NEW -j "+chainNodes)
	r.chains[r.filter(chainNodes)] = nil
	for _, a := range nodes {
		id := r.filter(chainNodes)
		r.chains[id] = append(r.chains[id], fmt.Sprintf("-d %s/%d -j DROP", a, r.family.Bits()))
	}
	r.out(pods, translated)
	unreachable := "icmp-port-unreachable"
	if r.family == tenant.IPv6 {
		unreachable = "icmp6-port-unreachable"
	}
	r.chains[r.filter(chainRej)] = []string{
		// An ICMP error does not end an established TCP connection, a reset does.
		"-p tcp -j REJECT --reject-with tcp-reset",
		"-j REJECT --reject-with " + unreachable,
	}
}

// out adds what decides on packets of pods that belong to no connection of
// theirs towards the outside.
func (r ruleset) out(pods []netip.Prefix, translated func(more string) string) {
	in, ext := r.host.Internal, r.host.External
	// Without "not confirmed" a flow that once left untranslated would pass
	// for as long as nobody answers it.
	fresh := " " + r.marked() + " -m conntrack --ctstate NEW,RELATED ! --ctstatus CONFIRMED -j ACCEPT"
	var out []string
	for _, p := range pods {
		// The exit guard lets pass whatever leaves with the right source.
		out = append(out, "-d "+p.String()+" -o "+ext+" -j DROP")
	}
	out = append(out, "-o "+ext+fresh, "-o "+in+translated(""), "-o "+in+fresh, "-m conntrack --ctstate INVALID -j DROP")
	for _, p := range pods {
		// Only who is known to be a pod gets an answer: that to any other might
		// follow the default route to the outside.
		out = append(out, "-s "+p.String()+" -j "+chainRej)
	}
	r.chains[r.filter(chainOut)] = append(out, "-j DROP")
}

func (r ruleset) hook(at ChainID, rule string) { r.hooks[at] = []Hook{{Position: 1, Rule: rule}} }

// tenant adds the leaves of tenant number n, and the branches towards them.
func (r ruleset) tenant(n int, id string, egress []netip.Addr) {
	comment := `-m comment --comment "` + id + `"`
	mark, mask := Mark(r.host.MarkMask, n), r.host.MarkMask
	link := LinkName(n)

	// To go there, not to jump: nobody comes back to look at the rest.
	leaf := r.branch(r.nat(chainMTree), link[len(LinkPrefix):], " -g ", func(depth int) string {
		return "-i " + link[:len(LinkPrefix)+depth] + "+"
	})
	r.chains[leaf] = append(r.chains[leaf], fmt.Sprintf("-i %s %s -j MARK --set-xmark %#x/%#x", link, comment, mark, mask))

	leaf = r.branch(r.nat(chainSTree), link[len(LinkPrefix):], " -j ", func(depth int) string {
		digits := mask &^ (Mark(mask, 1<<(4*(3-depth))) - 1)
		return fmt.Sprintf("-m mark --mark %#x/%#x", mark&digits, digits)
	})
	match := fmt.Sprintf("-m mark --mark %#x/%#x %s -j SNAT --to-source ", mark, mask, comment)
	for i, source := range buckets(r.family, len(egress)) {
		r.chains[leaf] = append(r.chains[leaf], source+match+egress[i%len(egress)].String())
	}
}

// branch returns the leaf chain for three hex digits, and adds the two jumps
// that lead to it where they are missing.
func (r ruleset) branch(root ChainID, digits, verb string, match func(depth int) string) ChainID {
	at := root
	for depth := 1; depth <= 2; depth++ {
		next := root
		next.Name += digits[:depth]
		if _, ok := r.chains[next]; !ok {
			r.chains[next] = nil
			r.chains[at] = append(r.chains[at], match(depth)+verb+next.Name)
		}
		at = next
	}
	return at
}

// buckets returns matches on the low bits of the source that share n addresses
// out: one pod always leaves with the same one. It is a power of two of them,
// and a single empty match if there is nothing to share out.
func buckets(f tenant.Family, n int) []string {
	size := 1
	for size < n {
		size *= 2
	}
	if size == 1 {
		return []string{""}
	}
	at := func(v int) netip.Addr {
		if f == tenant.IPv6 {
			return netip.AddrFrom16([16]byte{14: byte(v >> 8), 15: byte(v)})
		}
		return netip.AddrFrom4([4]byte{2: byte(v >> 8), 3: byte(v)})
	}
	out := make([]string, size)
	for i := range out {
		out[i] = fmt.Sprintf("-s %s/%s ", at(i), at(size-1))
	}
	return out
}

// aggregate returns the smallest list of prefixes that covers the same
// addresses, sorted. Interval sets of nftables refuse overlaps, and fewer
// rules are walked faster.
func aggregate(list []netip.Prefix) []netip.Prefix {
	out := slices.Clone(list)
	for i := range out {
		out[i] = out[i].Masked()
	}
	for {
		slices.SortFunc(out, func(a, b netip.Prefix) int {
			if c := a.Addr().Compare(b.Addr()); c != 0 {
				return c
			}
			return a.Bits() - b.Bits()
		})
		merged := mergeNeighbours(out)
		if len(merged) == len(out) {
			return merged
		}
		out = merged
	}
}

// mergeNeighbours drops what its sorted predecessor covers and joins halves.
func mergeNeighbours(sorted []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 {
			q := out[n-1]
			if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
				continue
			}
			if q.Bits() == p.Bits() && p.Bits() > 1 {
				if up := netip.PrefixFrom(q.Addr(), q.Bits()-1).Masked(); up.Contains(p.Addr()) && up.Addr() == q.Addr() {
					out[n-1] = up
					continue
				}
			}
		}
		out = append(out, p)
	}
	return out
}
