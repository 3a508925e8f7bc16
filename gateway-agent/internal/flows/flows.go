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
// and Count on that of their callers too, Usage on that alone. Its methods are safe for concurrent
// use. All of them bear with entries that vanish between being found and being
// deleted.
type Flows struct {
	mu   sync.Mutex // dumps of one socket must not mix
	conn *conntrack.Conn
	// dumper is that of Open's namespace; nil after a failure, which has the next
	// look open another.
	dumper *dumper
}

// rounds bounds how often a deletion looks again. A dump can miss an entry that
// is made, or moved by a resize of the table, while it runs.
const rounds = 5

// Open fails without CAP_NET_ADMIN or nf_conntrack_netlink.
func Open() (*Flows, error) {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", err)
	}
	d, err := openDumper()
	if err != nil {
		return nil, fmt.Errorf("connection tracking: %w", errors.Join(err, conn.Close()))
	}
	return &Flows{conn: conn, dumper: d}, nil
}

// Close releases the sockets.
func (f *Flows) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.conn.Close()
	if f.dumper != nil {
		err = errors.Join(err, f.dumper.close())
		f.dumper = nil
	}
	return err
}

// Match says which connections to delete: those that leave with Egress, but
// not those with KeepMark (0: none is kept), or, without Egress, those that
// carry Mark. Marks are compared within Mask.
type Match struct {
	Egress         netip.Addr
	KeepMark, Mark uint32
	Mask           uint32
}

// Delete deletes what any of the matches says, and returns how many entries
// each took; an entry that several match counts for the first. It costs hardly
// more for a thousand matches than for one: the kernel has no index by address
// or mark, so each look goes over the whole table (some 10 ms).
func (f *Flows) Delete(ctx context.Context, matches []Match) ([]int, error) {
	counts := make([]int, len(matches))
	byEgress, byMark := make(map[netip.Addr][]int), make(map[[2]uint32]int)
	masks := make(map[uint32]bool)
	for i, m := range matches {
		if m.Egress.IsValid() {
			byEgress[m.Egress] = append(byEgress[m.Egress], i)
			continue
		}
		masks[m.Mask] = true
		if _, twice := byMark[[2]uint32{m.Mark, m.Mask}]; !twice {
			byMark[[2]uint32{m.Mark, m.Mask}] = i
		}
	}
	err := f.deleteAll(ctx, func(e sight) (int, bool) {
		if e.status&statusSourceNAT != 0 {
			for _, i := range byEgress[e.egress] {
				if m := matches[i]; m.KeepMark == 0 || e.mark&m.Mask != m.KeepMark {
					return i, true
				}
			}
		}
		for mask := range masks {
			if i, ok := byMark[[2]uint32{e.mark & mask, mask}]; ok {
				return i, true
			}
		}
		return 0, false
	}, counts)
	return counts, wrap(err, "delete connections")
}

// DeleteUntranslated deletes the entries that started in pods, are not
// translated and do not end on this machine: connections that would leave with
// a pod's address for as long as they live.
func (f *Flows) DeleteUntranslated(ctx context.Context, pods []netip.Prefix) (int, error) {
	local := sync.OnceValues(localAddrs) // thousands with thousands of tenants, and seldom needed
	var unread error
	counts := make([]int, 1)
	err := f.deleteAll(ctx, func(e sight) (int, bool) {
		if e.source != e.egress || !slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Contains(e.source) }) {
			return 0, false
		}
		own, err := local()
		if err != nil {
			unread = err
			return 0, false
		}
		return 0, !own[e.destination]
	}, counts)
	err = errors.Join(err, unread)
	return counts[0], wrap(err, "delete untranslated connections of %v", pods)
}

// Lost is what connection tracking of this namespace has dropped since it
// began, of all tenants and of everybody else: the kernel does not say whose.
type Lost struct {
	// NotInserted are new connections for which no free port was left, and
	// packets that lost the race to begin a connection.
	NotInserted uint64
	// Dropped are new connections that found the table full.
	Dropped uint64
	// Evicted are unanswered connections that made room in a full table.
	Evicted uint64
}

// Lost reads the counters of all processors.
func (f *Flows) Lost(context.Context) (Lost, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats, err := f.conn.Stats()
	var out Lost
	for _, s := range stats {
		out.NotInserted += uint64(s.InsertFailed)
		// The kernel counts what it could not insert as dropped as well.
		out.Dropped += uint64(max(s.Drop, s.InsertFailed) - s.InsertFailed)
		out.Evicted += uint64(s.EarlyDrop)
	}
	return out, wrap(err, "read the counters of connection tracking")
}

// Count returns the number of entries of this namespace.
func (f *Flows) Count(context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats, err := f.conn.StatsGlobal()
	return int(stats.Entries), wrap(err, "count connections")
}

// deleteAll deletes the entries that match picks, until a look finds nothing
// more. It counts them at the index that match returns.
func (f *Flows) deleteAll(ctx context.Context, match func(sight) (int, bool), counts []int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range rounds {
		found, err := f.find(ctx, match)
		if err != nil {
			return err
		}
		for _, e := range found {
			if err := ctx.Err(); err != nil {
				return err
			}
			switch err := f.conn.Delete(e.flow); {
			case err == nil:
				counts[e.at]++
			case !errors.Is(err, unix.ENOENT):
				return err
			}
		}
		if len(found) == 0 {
			break
		}
	}
	return nil
}

// found is an entry that match has picked, and the index it returned.
type found struct {
	at   int
	flow conntrack.Flow
}

// find returns the entries that match picks. f.mu is held.
func (f *Flows) find(ctx context.Context, match func(sight) (int, bool)) (list []found, err error) {
	var failed error
	err = f.look(ctx, func(s sight, message []byte) {
		at, ok := match(s)
		if !ok {
			return
		}
		flow, err := flowOf(message)
		if err != nil {
			failed = err
			return
		}
		list = append(list, found{at, flow})
	})
	return list, errors.Join(err, failed)
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
