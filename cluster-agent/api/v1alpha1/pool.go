// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Range is a set of consecutive addresses: a subnet in CIDR form, or two
// addresses joined by a dash, both included. Of a subnet the network and the
// broadcast address (IPv4, up to /30) and the subnet router's anycast address
// (IPv6, up to /126) are not given to anybody.
//
// +kubebuilder:validation:MinLength=4
// +kubebuilder:validation:MaxLength=79
// +kubebuilder:validation:XValidation:rule="self.contains('/') ? isCIDR(self) : self.split('-').size() == 2 && self.split('-').all(a, isIP(a))",message="must be a subnet (192.0.2.0/28) or two addresses joined by a dash (192.0.2.10-192.0.2.20)"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self) == cidr(self).masked()",message="the subnet has host bits set; write its network address"
// +kubebuilder:validation:XValidation:rule="!(self.split('-').size() == 2 && self.split('-').all(a, isIP(a))) || ip(self.split('-')[0]).family() == ip(self.split('-')[1]).family()",message="both ends must be of one IP family"
type Range string

// Mode says how the gateways of a group share their tenants.
//
// +kubebuilder:validation:Enum=takeover
type Mode string

// ModeTakeover: one gateway at a time serves a tenant; another takes over its
// addresses when it fails.
const ModeTakeover Mode = "takeover"

// EgressPoolSpec says which addresses may be allocated, and to whom.
//
// +kubebuilder:validation:XValidation:rule="self.egressRanges.exists(r, r.contains(':')) == self.gatewayRanges.exists(r, r.contains(':'))",message="IPv6 needs ranges in both egressRanges and gatewayRanges"
// +kubebuilder:validation:XValidation:rule="self.egressRanges.exists(r, !r.contains(':')) == self.gatewayRanges.exists(r, !r.contains(':'))",message="IPv4 needs ranges in both egressRanges and gatewayRanges"
// +kubebuilder:validation:XValidation:rule="(self.egressRanges + self.gatewayRanges).all(a, (self.egressRanges + self.gatewayRanges).filter(b, a == b || (isCIDR(a) && isCIDR(b) && cidr(a).containsCIDR(b))).size() == 1)",message="ranges of one pool must not overlap"
// +kubebuilder:validation:XValidation:rule="(self.egressRanges + self.gatewayRanges).filter(a, isCIDR(a)).all(a, !(self.egressRanges + self.gatewayRanges).exists(b, b.split('-').size() == 2 && b.split('-').exists(e, isIP(e) && cidr(a).containsIP(e))))",message="ranges of one pool must not overlap"
type EgressPoolSpec struct {
	// EgressRanges are the addresses that tenants leave the cluster with, on
	// the gateways' external network.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	EgressRanges []Range `json:"egressRanges"`
	// GatewayRanges are the addresses that the nodes send the tenants' traffic
	// to, on the internal network. A tenant needs one for each IP family.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	GatewayRanges []Range `json:"gatewayRanges"`
	// GatewayGroup names the group of gateways that serve the pool.
	// +optional
	// +kubebuilder:default=default
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	GatewayGroup string `json:"gatewayGroup,omitempty"`
	// Mode says how the gateways of the group share their tenants.
	// +optional
	// +kubebuilder:default=takeover
	Mode Mode `json:"mode,omitempty"`
	// Disabled stops new allocations. Existing ones stay as they are.
	// +optional
	Disabled bool `json:"disabled,omitempty"`
	// AddressesPerTenant is how many egress addresses a tenant gets of each IP
	// family when it is allocated, unless it asks for exact ones. The gateway
	// shares its pods out among them: a pod leaves with one of them only. More
	// of them multiply the source ports towards one destination, 64512 for each.
	// A change applies to tenants that are allocated later.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16
	AddressesPerTenant int32 `json:"addressesPerTenant,omitempty"`
	// NamespaceSelector limits which namespaces may request from the pool. None
	// means all. It is asked when a tenant is allocated; to take an address
	// away, remove the namespace's label.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// Quarantine is how long a released address rests before another tenant
	// may get it, as a duration ("10m"). Its own tenant gets it back at once.
	// Gateway addresses rest for two minutes at least: until then a node may
	// still send the former tenant's traffic to them.
	// +optional
	// +kubebuilder:default="10m"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s') && duration(self) <= duration('720h')",message="must be between 0s and 720h"
	Quarantine metav1.Duration `json:"quarantine,omitempty"`
}

// Usage counts the addresses of one purpose. Numbers above 9007199254740991 are
// given as that number.
type Usage struct {
	// Total is the number of addresses that can be allocated.
	Total int64 `json:"total"`
	// Used is the number of addresses that tenants hold.
	Used int64 `json:"used"`
	// Resting is the number of addresses in quarantine or reserved.
	// +optional
	Resting int64 `json:"resting,omitempty"`
}

// Reservation holds addresses for a tenant whose EgressTenant is being written.
type Reservation struct {
	Tenant string `json:"tenant"`
	// +listType=atomic
	Addresses []string    `json:"addresses"`
	Time      metav1.Time `json:"time"`
}

// Quarantined are addresses that a tenant gave up.
type Quarantined struct {
	Tenant string `json:"tenant"`
	// +listType=atomic
	Addresses  []string    `json:"addresses"`
	ReleasedAt metav1.Time `json:"releasedAt"`
}

// EgressPoolStatus is written by the cluster-agent. Its reservations and its
// quarantine are what keeps two agents from giving one address twice: do not
// edit them.
type EgressPoolStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	Egress Usage `json:"egress,omitempty"`
	// +optional
	Gateway Usage `json:"gateway,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	// +listType=atomic
	Reservations []Reservation `json:"reservations,omitempty"`
	// +optional
	// +listType=atomic
	Quarantine []Quarantined `json:"quarantine,omitempty"`
}

// EgressPool is a set of egress addresses, and of the next hops that lead to
// them, which tenants are allocated from.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=egp
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="GROUP",type=string,JSONPath=`.spec.gatewayGroup`
// +kubebuilder:printcolumn:name="TOTAL",type=integer,JSONPath=`.status.egress.total`
// +kubebuilder:printcolumn:name="USED",type=integer,JSONPath=`.status.egress.used`
// +kubebuilder:printcolumn:name="RESTING",type=integer,JSONPath=`.status.egress.resting`
// +kubebuilder:printcolumn:name="READY",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="REASON",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
type EgressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EgressPoolSpec `json:"spec"`
	// +optional
	Status EgressPoolStatus `json:"status,omitempty"`
}

// EgressPoolList is a list of pools.
//
// +kubebuilder:object:root=true
type EgressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []EgressPool `json:"items"`
}
