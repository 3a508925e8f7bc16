// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Address is an IP address.
//
// +kubebuilder:validation:MaxLength=45
// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IP address"
type Address string

// EgressTenantSpec is an allocation. The lists of addresses are empty while the
// request is refused; the condition Allocated says why.
//
// +kubebuilder:validation:XValidation:rule="(size(self.egressIPs) == 0) == (size(self.gatewayIPs) == 0)",message="egressIPs and gatewayIPs are either both given or both empty"
type EgressTenantSpec struct {
	// Pool is the pool that the addresses were allocated from.
	// +kubebuilder:validation:MaxLength=253
	Pool string `json:"pool"`
	// Namespaces are the members, sorted.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	Namespaces []string `json:"namespaces"`
	// GatewayIPs are the next hops, one for each IP family; IPv4 first.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=2
	GatewayIPs []Address `json:"gatewayIPs"`
	// EgressIPs are the source addresses outside; IPv4 first.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	EgressIPs []Address `json:"egressIPs"`
	// GatewayGroup is the group of gateways that serves the tenant.
	// +kubebuilder:validation:MaxLength=63
	GatewayGroup string `json:"gatewayGroup"`
}

// EgressTenantStatus is what an owner reads.
type EgressTenantStatus struct {
	// Egress and NextHops repeat the addresses of the spec, joined by commas: the
	// tables of the API server print a list as JSON.
	// +optional
	Egress string `json:"egress,omitempty"`
	// +optional
	NextHops string `json:"nextHops,omitempty"`
	// Gateway is the gateway that serves the tenant now.
	// +optional
	Gateway string `json:"gateway,omitempty"`
	// AuditedGeneration is the generation up to which the audit stream was told.
	// +optional
	AuditedGeneration int64 `json:"auditedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// EgressTenant is the durable allocation of one tenant: one or more namespaces
// that leave the cluster with the same egress addresses. It is written by the
// cluster-agent only.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=egt
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="POOL",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="EGRESS IPS",type=string,JSONPath=`.status.egress`
// +kubebuilder:printcolumn:name="GATEWAY IPS",type=string,JSONPath=`.status.nextHops`
// +kubebuilder:printcolumn:name="GATEWAY",type=string,JSONPath=`.status.gateway`
// +kubebuilder:printcolumn:name="READY",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="REASON",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="MESSAGE",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
type EgressTenant struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EgressTenantSpec `json:"spec"`
	// +optional
	Status EgressTenantStatus `json:"status,omitempty"`
}

// EgressTenantList is a list of tenants.
//
// +kubebuilder:object:root=true
type EgressTenantList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []EgressTenant `json:"items"`
}
