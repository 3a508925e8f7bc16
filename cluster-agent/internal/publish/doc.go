// SPDX-License-Identifier: Apache-2.0

// Package publish is the one loop of the cluster-agent: it takes a snapshot of the
// cluster, derives what should be, stores allocations, and then tells OVN (routes),
// the gateways (bus) and the owners (conditions, events) about them.
//
// The loop is level-triggered: each pass looks at everything and writes what
// differs, so that a lost event, a crash or a second leader costs time at worst.
// The order within a pass is what keeps promises: an address is stored in an
// EgressTenant before anything uses it, and rests in its pool's quarantine before
// its EgressTenant is deleted.
package publish
