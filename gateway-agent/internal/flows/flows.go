// SPDX-License-Identifier: Apache-2.0

// Package flows finds, counts and deletes connections in the kernel's
// connection tracking. It is the only importer of ti-mo/conntrack.
package flows

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// Flows works on the network namespace in which Open was called, DeleteUntranslated
// and Count on that of their callers too. Its methods are safe for concurrent
// use. All of them bear with entries that vanish between being found and being
// deleted.
type Flows struct {
	mu   sync.Mutex // dumps of one socket must not mix
	conn *conntrack.Conn
}

// rounds bounds how often a deletion looks again. A dump can miss an entry that
// is made, or moved by a resize of the table, while it runs.
const rounds = 5

// readBuffer holds what the kernel sends ahead of the reader of a large dump.
const readBuffer = 1 << 20

// Open fails without CAP_NET_ADMIN or nf_conntrack_netlink.
func Open() (*Flows, error) {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	if err := conn.SetReadBuffer(readBuffer); err != nil {
		return nil, fmt.Errorf("connection tracking: read buffer: %w", errors.Join(err, conn.Close()))
	}
	return &Flows{conn: conn}, nil
}

// Close releases the socket.
func (f *Flows) Close() error { return f.conn.Close() }

// DeleteByEgressIP deletes the translated entries whose replies go to addr,
// except those with keepMark within mask (keepMark 0: none is kept). It
// returns how many it deleted.
func (f *Flows) DeleteByEgressIP(ctx context.Context, addr netip.Addr, keepMark, mask uint32) (int, error) {
	n, err := f.deleteAll(ctx, conntrack.NewFilter().Status(conntrack.StatusSrcNAT), func(e *conntrack.Flow) bool {
		kept := keepMark != 0 && e.Mark&mask == keepMark
		return e.Status.SrcNAT() && e.TupleReply.IP.DestinationAddress == addr && !kept
	})
	return n, wrap(err, "delete connections of %s", addr)
}

// DeleteByMark deletes the entries that carry mark within mask.
func (f *Flows) DeleteByMark(ctx context.Context, mark, mask uint32) (int, error) {
	n, err := f.deleteAll(ctx, conntrack.NewFilter().Mark(mark).MarkMask(mask), func(e *conntrack.Flow) bool {
		return e.Mark&mask == mark
	})
	return n, wrap(err, "delete connections with mark %#x/%#x", mark, mask)
}

// DeleteUntranslated deletes the entries that started in pods, are not
// translated and do not end on this machine: connections that would leave with
// a pod's address for as long as they live.
func (f *Flows) DeleteUntranslated(ctx context.Context, pods []netip.Prefix) (int, error) {
	local, err := localAddrs()
	if err != nil {
		return 0, fmt.Errorf("delete untranslated connections: %w", err)
	}
	n, err := f.deleteAll(ctx, nil, func(e *conntrack.Flow) bool {
		src := e.TupleOrig.IP.SourceAddress
		return src == e.TupleReply.IP.DestinationAddress &&
			slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Contains(src) }) &&
			!local[e.TupleOrig.IP.DestinationAddress]
	})
	return n, wrap(err, "delete untranslated connections of %v", pods)
}

// Count returns the number of entries of this namespace.
func (f *Flows) Count(context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats, err := f.conn.StatsGlobal()
	return int(stats.Entries), wrap(err, "count connections")
}

// deleteAll deletes what match picks from the entries that filter lets pass
// (nil: all), until a look finds nothing more. Older kernels ignore filters.
func (f *Flows) deleteAll(ctx context.Context, filter conntrack.Filter, match func(*conntrack.Flow) bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	deleted := 0
	for range rounds {
		entries, err := f.dump(filter)
		if err != nil {
			return deleted, err
		}
		found := 0
		for i := range entries {
			if !match(&entries[i]) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return deleted, err
			}
			found++
			switch err := f.conn.Delete(key(entries[i])); {
			case err == nil:
				deleted++
			case !errors.Is(err, unix.ENOENT):
				return deleted, err
			}
		}
		if found == 0 {
			break
		}
	}
	return deleted, nil
}

func (f *Flows) dump(filter conntrack.Filter) ([]conntrack.Flow, error) {
	if filter == nil {
		return f.conn.Dump(nil)
	}
	return f.conn.DumpFilter(filter, nil)
}

// key reduces an entry to what identifies it. The id makes sure that it is not
// a later one with the same addresses and ports, which may be right.
func key(e conntrack.Flow) conntrack.Flow {
	return conntrack.Flow{ID: e.ID, Zone: e.Zone, TupleOrig: e.TupleOrig, TupleReply: e.TupleReply}
}

func localAddrs() (map[netip.Addr]bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	out := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out[p.Addr().Unmap()] = true
		}
	}
	return out, nil
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
