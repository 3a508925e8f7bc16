// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// What a namespace's owner writes on the namespace.
const (
	// LabelPool requests an egress address from the pool that it names.
	LabelPool = "egress-gateway.io/pool"
	// LabelTenant names the tenant. Namespaces that all carry the same name
	// share one egress address. Without it the tenant has the namespace's name.
	LabelTenant = "egress-gateway.io/tenant"
	// AnnotationEgressIPs asks for exact egress addresses, separated by commas.
	AnnotationEgressIPs = "egress-gateway.io/egress-ips"
)

// What the cluster-agent writes on the routes (APBs) that it owns.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "egress-cluster-agent"
)

// The types of the conditions.
const (
	// ConditionAllocated: the tenant holds the addresses it asks for.
	ConditionAllocated = "Allocated"
	// ConditionRouteAccepted: every node routes the tenant to its gateway IPs.
	ConditionRouteAccepted = "RouteAccepted"
	// ConditionProgrammed: a gateway serves this very generation.
	ConditionProgrammed = "Programmed"
	// ConditionReady: all of the above (EgressTenant); addresses can be
	// allocated from it (EgressPool).
	ConditionReady = "Ready"
	// ConditionConflict: ranges of the pool are not used, because they overlap
	// with another pool or hold an address of a node or of a gateway.
	ConditionConflict = "Conflict"
)
