// SPDX-License-Identifier: Apache-2.0

// Package derive turns a snapshot of the cluster into what should be: the tenants
// that are asked for, the state of the pools, the records of the nodes, and what
// is wrong, in words that the owner of the object understands.
//
// It is pure: no I/O, no clock, no logger; equal inputs give equal outputs. It
// never changes its input.
package derive
