// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// adoptedCluster holds what is found in the kernel but belongs to no cluster
// that could be named: return routes and guarded networks. It goes as soon as
// no adopted tenant is left.
const adoptedCluster = "adopted-from-the-kernel"

// Adopt makes a memory from what the kernel holds, for a gateway that has lost
// its disk copy: what runs goes on, until a confirmed view says otherwise. A
// tenant of which the kernel holds less than a link, a gateway IP and an egress
// IP does not run and is not adopted.
func Adopt(have plan.State, host plan.Host, group string) Memory {
	m := Memory{Clusters: map[string]Cluster{}}
	trees, maps := sourcesOf(have.Chains), have.Translated()
	for _, name := range sortedKeys(have.Links) {
		l := have.Links[name]
		cluster, tenantName, _ := strings.Cut(l.Tenant, "/")
		t := tenant.Tenant{Schema: tenant.Schema, Cluster: cluster, Name: tenantName, Group: group, EgressIPs: egressOf(trees[l.Tenant], maps[l.Number])}
		for a := range have.Addrs {
			if a.Dev == name {
				t.GatewayIPs = append(t.GatewayIPs, a.IP)
			}
		}
		slices.SortFunc(t.GatewayIPs, netip.Addr.Compare) // IPv4 comes first
		e := Entry{Number: l.Number, Adopted: true, Record: t}
		if validateEntry(cluster, tenantName, e) != nil {
			continue
		}
		if m.Clusters[cluster].Tenants == nil {
			m.Clusters[cluster] = Cluster{Tenants: map[string]Entry{}}
		}
		m.Clusters[cluster].Tenants[tenantName] = e
	}
	if len(m.Clusters) > 0 {
		m.Clusters[adoptedCluster] = Cluster{Nodes: adoptNodes(have.Routes), Network: adoptNetwork(have.Guard)}
	}
	return m
}

// egressOf returns a tenant's egress IPs: of each family those of the trees, which
// know several, else that of the maps, by which a new tenant is served before the
// trees know it.
func egressOf(trees, maps []netip.Addr) (out []netip.Addr) {
	for _, f := range tenant.Families() {
		if of := f.Addrs(trees); len(of) > 0 {
			out = append(out, of...)
		} else {
			out = append(out, f.Addrs(maps)...)
		}
	}
	return out
}

// sourcesOf returns the egress IPs of the trees by TenantID, in the order of the record:
// the rules share the sources out by their low bits, in ascending order.
func sourcesOf(chains map[plan.ChainID][]string) map[string][]netip.Addr {
	type leaf struct{ bucket, egress netip.Addr }
	leaves := map[string][]leaf{}
	for id, rules := range chains {
		if id.Table != "nat" {
			continue
		}
		for _, rule := range rules {
			args := ruleArgs(rule)
			if args["-d"] != "" {
				continue // an exception for one destination
			}
			egress, err := netip.ParseAddr(args["--to-source"])
			if owner := args["--comment"]; err == nil && owner != "" {
				low, _, _ := strings.Cut(args["-s"], "/")
				bucket, _ := netip.ParseAddr(low) // none: there is one source only
				leaves[owner] = append(leaves[owner], leaf{bucket, egress})
			}
		}
	}
	out := make(map[string][]netip.Addr, len(leaves))
	for owner, list := range leaves {
		slices.SortFunc(list, func(a, b leaf) int {
			return cmp.Or(cmp.Compare(tenant.FamilyOf(a.egress), tenant.FamilyOf(b.egress)), a.bucket.Compare(b.bucket))
		})
		for _, l := range list {
			if !slices.Contains(out[owner], l.egress) {
				out[owner] = append(out[owner], l.egress)
			}
		}
	}
	return out
}

// ruleArgs returns the options of a rule with the word that follows each.
func ruleArgs(rule string) map[string]string {
	args := map[string]string{}
	words := strings.Fields(rule)
	for i := range max(len(words)-1, 0) {
		args[words[i]] = strings.Trim(words[i+1], `"`)
	}
	return args
}

func adoptNodes(routes map[plan.Route]bool) map[string]tenant.Node {
	out := map[string]tenant.Node{}
	for r := range routes {
		name := "via-" + strings.NewReplacer(".", "-", ":", "-").Replace(r.Via.StringExpanded())
		n, ok := out[name]
		if !ok {
			n = tenant.Node{Schema: tenant.Schema, Cluster: adoptedCluster, Name: name, Addresses: []netip.Addr{r.Via}}
		}
		n.Subnets = append(n.Subnets, r.Dst)
		slices.SortFunc(n.Subnets, netip.Prefix.Compare)
		out[name] = n
	}
	return out
}

// adoptNetwork returns the networks that the guards cover. They must not
// shrink before a cluster has told its networks again.
func adoptNetwork(g plan.Guard) *tenant.Network {
	n := tenant.Network{Schema: tenant.Schema, Cluster: adoptedCluster}
	for _, f := range tenant.Families() {
		for element := range g.Sets[fmt.Sprintf("pods%d", f)] {
			if p, err := netip.ParsePrefix(element); err == nil {
				n.PodNetworks = append(n.PodNetworks, p)
			} else if a, err := netip.ParseAddr(element); err == nil {
				n.PodNetworks = append(n.PodNetworks, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	if len(n.PodNetworks) == 0 {
		return nil
	}
	slices.SortFunc(n.PodNetworks, netip.Prefix.Compare)
	return &n
}

// settleAdopted takes from the adopted cluster what a real one has told now,
// and all of it once no adopted tenant is left.
func settleAdopted(m Memory) {
	adopted, ok := m.Clusters[adoptedCluster]
	if !ok {
		return
	}
	if !slices.ContainsFunc(m.Refs(), func(r Ref) bool { e, _ := m.Entry(r); return e.Adopted }) {
		delete(m.Clusters, adoptedCluster)
		return
	}
	for name, n := range adopted.Nodes {
		for cluster, c := range m.Clusters {
			if cluster != adoptedCluster && overlapsAny(n, c.Nodes) {
				delete(adopted.Nodes, name)
			}
		}
	}
}
