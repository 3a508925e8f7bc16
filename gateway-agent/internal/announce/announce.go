// SPDX-License-Identifier: Apache-2.0

// Package announce tells neighbours where the gateway's addresses are, and
// learns which nodes have asked for them.
package announce

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// Target is an address to announce from a link.
type Target struct {
	Dev string
	IP  netip.Addr
}

// Options of an Announcer. Zero values mean the defaults.
type Options struct {
	PerSecond int           // packets per second, default 20: OVN takes 25
	Burst     int           // default 5
	Repeat    int           // announcements of a new address, default 3
	Interval  time.Duration // between these, default 1 s
	Refresh   time.Duration // of all addresses, default 100 s; less than half of what switches age a MAC out in
	Log       *slog.Logger
}

// Announcer sends announcements, paced. Its methods are safe for concurrent use.
type Announcer struct{}

// New fails without CAP_NET_RAW. The caller has to call Run, and Close if it
// never does.
func New(o Options) (*Announcer, error) { return &Announcer{}, nil }

// Announce queues announcements of t; it does not wait for them to be sent.
// t is not refreshed later unless Keep names it.
func (a *Announcer) Announce(t ...Target) {}

// Keep sets the addresses that are announced again and again. An address that
// is no longer among them is dropped from the queue too.
func (a *Announcer) Keep(all []Target) {}

// Run sends until ctx ends. It returns nil then.
func (a *Announcer) Run(ctx context.Context) error { return nil }

// Close releases the socket.
func (a *Announcer) Close() error { return nil }

// Resolved tells that the tenant link that holds Target has just answered the
// ARP request (or neighbour solicitation) of Node: from now on Node sends what
// is for Target to the link's MAC.
type Resolved struct{ Node, Target netip.Addr }

// Watch reports each answer that leaves nic with another source MAC than nic's
// own, until ctx ends; the channel is closed then. Events are dropped when the
// reader is slow: they are hints for an early sweep, the periodic one remains.
func Watch(ctx context.Context, nic string) (<-chan Resolved, error) { return nil, nil }
