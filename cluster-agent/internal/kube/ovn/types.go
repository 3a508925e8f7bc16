// SPDX-License-Identifier: Apache-2.0

// Package ovn holds the little of OVN-Kubernetes' API group k8s.ovn.org/v1 that
// the cluster-agent reads and writes. OVN-Kubernetes' own module is not used: it
// brings its whole controller along.
//
// +kubebuilder:object:generate=true
package ovn

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The resources of the group.
const (
	Group     = "k8s.ovn.org"
	Version   = "v1"
	Routes    = "adminpolicybasedexternalroutes"
	RouteKind = "AdminPolicyBasedExternalRoute"
	EgressIPs = "egressips"
)

// GroupVersion returns the group and version of this package.
func GroupVersion() schema.GroupVersion { return schema.GroupVersion{Group: Group, Version: Version} }

// AddToScheme makes the types known to s.
func AddToScheme(s *runtime.Scheme) error {
	gv := GroupVersion()
	s.AddKnownTypeWithName(gv.WithKind(RouteKind), &Route{})
	s.AddKnownTypeWithName(gv.WithKind(RouteKind+"List"), &RouteList{})
	s.AddKnownTypeWithName(gv.WithKind("EgressIP"), &EgressIP{})
	s.AddKnownTypeWithName(gv.WithKind("EgressIPList"), &EgressIPList{})
	metav1.AddToGroupVersion(s, gv)
	return nil
}

// Route is an AdminPolicyBasedExternalRoute.
//
// +kubebuilder:object:root=true
type Route struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   RouteSpec   `json:"spec"`
	Status RouteStatus `json:"status,omitempty"`
}

// RouteSpec says whose traffic goes where.
type RouteSpec struct {
	From     RouteFrom `json:"from"`
	NextHops NextHops  `json:"nextHops"`
}

// RouteFrom selects namespaces.
type RouteFrom struct {
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
}

// NextHops are the hops; Dynamic is only looked at for being there.
type NextHops struct {
	Static  []StaticHop  `json:"static,omitempty"`
	Dynamic []DynamicHop `json:"dynamic,omitempty"`
}

// StaticHop is one next hop.
type StaticHop struct {
	IP         string `json:"ip"`
	BFDEnabled bool   `json:"bfdEnabled,omitempty"`
}

// DynamicHop is a next hop that is found by pods.
type DynamicHop struct {
	BFDEnabled bool `json:"bfdEnabled,omitempty"`
}

// RouteStatus is what the nodes report.
type RouteStatus struct {
	Messages []string `json:"messages,omitempty"`
	Status   string   `json:"status,omitempty"`
}

// RouteList is a list of routes.
//
// +kubebuilder:object:root=true
type RouteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []Route `json:"items"`
}

// EgressIP is OVN-Kubernetes' own way to give a namespace an address.
//
// +kubebuilder:object:root=true
type EgressIP struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec EgressIPSpec `json:"spec"`
}

// EgressIPSpec selects namespaces.
type EgressIPSpec struct {
	NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
}

// EgressIPList is a list of EgressIPs.
//
// +kubebuilder:object:root=true
type EgressIPList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []EgressIP `json:"items"`
}
