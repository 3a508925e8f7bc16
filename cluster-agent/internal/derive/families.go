// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"fmt"
	"slices"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/shared/tenant"
)

// familiesOf returns the families of the pods of these nodes: none as long as
// no node is known.
func familiesOf(nodes []tenant.Node) []tenant.Family {
	var out []tenant.Family
	for _, f := range tenant.Families() {
		if slices.ContainsFunc(nodes, func(n tenant.Node) bool { return len(f.Prefixes(n.Subnets)) > 0 }) {
			out = append(out, f)
		}
	}
	return out
}

// Lacking returns the families of the cluster's pods in which a tenant has no
// address. Traffic of such a family gets no next hop: OVN-Kubernetes leaves it
// on the node's own way, and no gateway sees it.
func Lacking(spec v1alpha1.EgressTenantSpec, cluster []tenant.Family) []tenant.Family {
	has := Addrs(spec.EgressIPs)
	return slices.DeleteFunc(slices.Clone(cluster), func(f tenant.Family) bool { return len(has) == 0 || len(f.Addrs(has)) > 0 })
}

// withoutFamily is the verdict for a tenant that lacks a family of its pods.
func withoutFamily(has string, f tenant.Family, p Pool) Verdict {
	if p.UsableEgress.Has(f) && p.UsableGateway.Has(f) {
		return yes(ReasonAllocated+"Without"+f.String(), "%s; no gateway serves the %s traffic of its pods: pool %q has %s addresses, but had none when the tenant got its own; ask for one with the annotation %s, or remove the pool's label from the namespace and set it again",
			has, f, p.Name, f, v1alpha1.AnnotationEgressIPs)
	}
	return yes(ReasonAllocated+"Without"+f.String(), "%s; no gateway serves the %s traffic of its pods, which takes the node's own way: pool %q has no %s addresses; ask the administrator to add ranges, or request from another pool",
		has, f, p.Name, f)
}

// mismatch says why a pool is of no use to the cluster's pods at all, or nil. A
// route of which no hop fits OVN-Kubernetes fails, and it takes the pods' source
// translation away all the same: they would leave with their own addresses.
func (p Pool) mismatch(cluster []tenant.Family) *Refusal {
	if len(cluster) == 0 || slices.ContainsFunc(cluster, p.UsableEgress.Has) {
		return nil
	}
	return &Refusal{ReasonFamilyMismatch, fmt.Sprintf("pool %q has no %s addresses, but the pods of this cluster have no others; request from another pool, or ask the administrator to add ranges", p.Name, cluster[0])}
}
