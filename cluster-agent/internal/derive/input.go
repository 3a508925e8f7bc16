// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/shared/tenant"
)

// Input is the cluster at one moment, in any order.
type Input struct {
	Cluster    string
	Namespaces []Namespace
	Nodes      []Node
	Pools      []*v1alpha1.EgressPool
	Tenants    []*v1alpha1.EgressTenant
	// Routes are known only if RouteAPI says so: the CRD of OVN-Kubernetes may
	// be missing.
	RouteAPI  bool
	Routes    []Route
	EgressIPs []EgressIP
	// Gateways are the last reports of all gateways, dead ones included.
	Gateways []tenant.Summary
	// LastNodes are the last good records of the nodes.
	LastNodes map[string]tenant.Node
}

// Namespace is what matters of a Namespace.
type Namespace struct {
	Name, UID           string
	Labels, Annotations map[string]string
	// Deleting namespaces keep what they have until they are gone, since their
	// pods still end their work, but get nothing new.
	Deleting bool
}

// Node is what matters of a Node.
type Node struct {
	Name, UID   string
	Annotations map[string]string
	PodCIDRs    []string
	InternalIPs []string
}

// Route is what matters of an AdminPolicyBasedExternalRoute.
type Route struct {
	Name    string
	Version string // the resource version
	// Ours says that the cluster-agent wrote it.
	Ours     bool
	Selector *metav1.LabelSelector
	Hops     []netip.Addr
	// BFD says that any hop has it enabled; Dynamic that there are dynamic hops.
	BFD, Dynamic bool
	Owners       []string // UIDs of the namespaces that own it
	Status       string
	Messages     []string
}

// EgressIP is what matters of an EgressIP of OVN-Kubernetes.
type EgressIP struct {
	Name     string
	Selector *metav1.LabelSelector
}

// WantedRoute is an AdminPolicyBasedExternalRoute as it should be.
type WantedRoute struct {
	Name, Tenant string
	Selector     *metav1.LabelSelector
	Hops         []netip.Addr
	Owners       []Owner
}

// Owner is a namespace that owns a route.
type Owner struct{ Name, UID string }

// Event is a Kubernetes event about a Namespace or a Node.
type Event struct {
	Kind, Name, UID string
	Warning         bool
	Reason, Message string
}

// Output is what should be.
type Output struct {
	// Wants are the tenants that are asked for, by name.
	Wants []Want
	Pools map[string]Pool
	// Nodes are the records to publish, by name. Missing are the names of nodes
	// that exist but of which no good record is known: what was published of
	// them earlier should stay.
	Nodes   []tenant.Node
	Missing []string
	// RouteNodes are the nodes that have to accept every route.
	RouteNodes []string
	Problems   []Problem
	// Families are those of the cluster's pods; none if no node is known.
	Families []tenant.Family
}

// Problem is something that the owner of an object should know. Kind is
// "Namespace" or "Node".
type Problem struct {
	Kind, Name, UID string
	Tenant          string // empty for nodes
	Refusal
}

// Refusal is a stable reason in CamelCase and a message that names a remedy.
type Refusal struct{ Reason, Message string }

// The reasons of this package; package allocate has more.
const (
	ReasonPoolNotFound         = "PoolNotFound"
	ReasonPoolDisabled         = "PoolDisabled"
	ReasonPoolConflict         = "PoolConflict"
	ReasonInvalidRange         = "InvalidRange"
	ReasonInvalidSelector      = "InvalidSelector"
	ReasonNamespaceNotAllowed  = "NamespaceNotAllowed"
	ReasonNamespaceTerminating = "NamespaceTerminating"
	ReasonInvalidAnnotation    = "InvalidAnnotation"
	ReasonInvalidTenantName    = "InvalidTenantName"
	ReasonTenantNameTaken      = "TenantNameTaken"
	ReasonNamespacesDisagree   = "NamespacesDisagree"
	ReasonOtherRoute           = "OtherRouteSelectsNamespace"
	ReasonEgressIP             = "EgressIPSelectsNamespace"
	ReasonInvalidNode          = "InvalidNodeAnnotation"
	ReasonNodeSubnetTaken      = "NodeSubnetTaken"
	ReasonFamilyMismatch       = "FamilyMismatch"
)

// Derive computes the output. Its cost grows little more than linearly with the
// size of the input.
func Derive(in Input) Output {
	nodes := deriveNodes(in)
	pools := derivePools(in, nodes.addresses)
	out := Output{
		Pools: pools, Nodes: nodes.records, Missing: nodes.missing, RouteNodes: nodes.routed, Problems: nodes.problems,
		Families: familiesOf(nodes.records),
	}
	r := newRequests(in, pools)
	r.families = out.Families
	out.Wants = r.resolveAll()
	out.Problems = append(out.Problems, r.problems...)
	return out
}
