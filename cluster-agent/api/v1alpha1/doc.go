// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the API types of the group egress-gateway.io: EgressPool,
// which an administrator writes, and EgressTenant, which the cluster-agent writes.
//
// The types are plain data; the package imports nothing but apimachinery.
// The CRDs in deploy/crds and the deep copies are generated from it.
//
// +kubebuilder:object:generate=true
// +groupName=egress-gateway.io
package v1alpha1
