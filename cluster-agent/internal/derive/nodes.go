// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// The annotations of OVN-Kubernetes that are read.
const (
	ovnPrefix          = "k8s.ovn.org/"
	annotationSubnets  = ovnPrefix + "node-subnets"
	annotationGateway  = ovnPrefix + "l3-gateway-config"
	annotationPrimary  = ovnPrefix + "node-primary-ifaddr"
	annotationHybrid   = ovnPrefix + "hybrid-overlay-node-subnet"
	defaultNetworkName = "default"
)

// nodeResult is what the nodes amount to.
type nodeResult struct {
	records   []tenant.Node
	missing   []string
	routed    []string
	addresses []holder
	problems  []Problem
}

// candidate is the record of one node before it is compared with the others'.
type candidate struct {
	rec   tenant.Node
	stale bool // the last good one, for want of a new one
	uid   string
}

// errNotReady says that a node does not tell yet what we need.
var errNotReady = errors.New("not ready")

func deriveNodes(in Input) nodeResult {
	var res nodeResult
	var list []candidate
	// One OVN annotation anywhere makes it an OVN cluster. There podCIDRs
	// mean nothing, not even on a node that has just joined.
	ovn := slices.ContainsFunc(in.Nodes, hasOVN)
	for _, n := range slices.SortedFunc(slices.Values(in.Nodes), func(a, b Node) int { return cmp.Compare(a.Name, b.Name) }) {
		res.addresses = append(res.addresses, nodeHolders(n)...)
		if n.Annotations[annotationHybrid] != "" && n.Annotations[annotationSubnets] == "" {
			continue // a Windows node: its pods are not OVN's
		}
		if n.Annotations[annotationSubnets] != "" {
			res.routed = append(res.routed, n.Name)
		}
		rec, err := parseNode(in.Cluster, n, ovn)
		if err == nil {
			list = append(list, candidate{rec: rec, uid: n.UID})
			continue
		}
		if !errors.Is(err, errNotReady) {
			res.problems = append(res.problems, Problem{Kind: "Node", Name: n.Name, UID: n.UID, Refusal: Refusal{ReasonInvalidNode,
				fmt.Sprintf("%v; the routes to this node's pods stay as they were until this is corrected", err)}})
		}
		if last, ok := in.LastNodes[n.Name]; ok {
			list = append(list, candidate{rec: last, stale: true, uid: n.UID})
		} else {
			res.missing = append(res.missing, n.Name)
		}
	}
	res.separate(list, in.LastNodes)
	return res
}

func hasOVN(n Node) bool {
	for k := range n.Annotations {
		if strings.HasPrefix(k, ovnPrefix) {
			return true
		}
	}
	return false
}

// nodeHolders lists all addresses that a node says it has; errors are told
// elsewhere.
func nodeHolders(n Node) []holder {
	var out []holder
	seen := map[netip.Addr]bool{}
	add := func(list []netip.Addr) {
		for _, a := range list {
			if !seen[a] {
				seen[a] = true
				out = append(out, holder{a, fmt.Sprintf("node %q", n.Name)})
			}
		}
	}
	gw, _ := parseGatewayConfig(n.Annotations[annotationGateway])
	primary, _ := parsePrimary(n.Annotations[annotationPrimary])
	internal, _ := parseInternal(n.InternalIPs)
	add(gw)
	add(primary)
	add(internal)
	return out
}

// separate takes each subnet from all nodes but one: two routes to one subnet
// would send half of the answers to the wrong node. A node that says so now
// goes before one that we only remember, and the one that had the subnet before
// any other.
func (res *nodeResult) separate(list []candidate, last map[string]tenant.Node) {
	type subnetClaim struct {
		subnet netip.Prefix
		node   int
		rank   int
	}
	var claims []subnetClaim
	for i, c := range list {
		for _, s := range c.rec.Subnets {
			rank := 1
			if c.stale {
				rank = 2
			} else if slices.Contains(last[c.rec.Name].Subnets, s) {
				rank = 0
			}
			claims = append(claims, subnetClaim{s, i, rank})
		}
	}
	slices.SortStableFunc(claims, func(a, b subnetClaim) int { return cmp.Compare(a.rank, b.rank) })
	var given disjoint
	keep := make([][]netip.Prefix, len(list))
	for _, c := range claims {
		if other, ok := given.add(c.subnet, list[c.node].rec.Name); !ok {
			n := list[c.node]
			res.problems = append(res.problems, Problem{Kind: "Node", Name: n.rec.Name, UID: n.uid, Refusal: Refusal{ReasonNodeSubnetTaken,
				fmt.Sprintf("pod subnet %s overlaps with one of node %q and gets no route until that node gives it up", c.subnet, other)}})
			continue
		}
		keep[c.node] = append(keep[c.node], c.subnet)
	}
	for i, c := range list {
		rec := c.rec
		if len(keep[i]) != len(rec.Subnets) {
			rec.Subnets = slices.DeleteFunc(slices.Clone(rec.Subnets), func(p netip.Prefix) bool { return !slices.Contains(keep[i], p) })
		}
		res.records = append(res.records, rec)
	}
}

// disjoint is a set of prefixes without overlaps, sorted.
type disjoint []struct {
	subnet netip.Prefix
	owner  string
}

// add adds p, or returns the owner of a prefix that it overlaps with. In a
// sorted set without overlaps only the two neighbours can.
func (d *disjoint) add(p netip.Prefix, owner string) (other string, ok bool) {
	i, _ := slices.BinarySearchFunc(*d, p, func(e struct {
		subnet netip.Prefix
		owner  string
	}, p netip.Prefix) int {
		return e.subnet.Addr().Compare(p.Addr())
	})
	for _, j := range []int{i - 1, i} {
		if j >= 0 && j < len(*d) && (*d)[j].subnet.Overlaps(p) {
			return (*d)[j].owner, false
		}
	}
	*d = slices.Insert(*d, i, struct {
		subnet netip.Prefix
		owner  string
	}{p, owner})
	return "", true
}
