// SPDX-License-Identifier: Apache-2.0

// Package flows finds, counts and deletes connections in the kernel's
// connection tracking. It is the only importer of ti-mo/conntrack.
package flows

import (
	"context"
	"net/netip"
)

// Flows works on the network namespace in which Open was called. Its methods
// are safe for concurrent use. All of them bear with entries that vanish
// between being found and being deleted.
type Flows struct{}

// Open fails without CAP_NET_ADMIN or nf_conntrack_netlink.
func Open() (*Flows, error) { return &Flows{}, nil }

// Close releases the sockets.
func (f *Flows) Close() error { return nil }

// DeleteByEgressIP deletes the translated entries whose replies go to addr,
// except those with keepMark within mask (keepMark 0: none is kept). It
// returns how many it deleted.
func (f *Flows) DeleteByEgressIP(ctx context.Context, addr netip.Addr, keepMark, mask uint32) (int, error) {
	return 0, nil
}

// DeleteByMark deletes the entries that carry mark within mask.
func (f *Flows) DeleteByMark(ctx context.Context, mark, mask uint32) (int, error) { return 0, nil }

// DeleteUntranslated deletes the entries that started in pods, are not
// translated and do not end on this machine: connections that would leave with
// a pod's address for as long as they live.
func (f *Flows) DeleteUntranslated(ctx context.Context, pods []netip.Prefix) (int, error) {
	return 0, nil
}

// Count returns the number of entries of this namespace.
func (f *Flows) Count(ctx context.Context) (int, error) { return 0, nil }
