// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"context"
	"net/netip"
)

// MarksOf returns the mark, within mask, that connections of each of the
// sources carry; a source without any is not in the result. One look over the
// whole table serves all of them.
func (f *Flows) MarksOf(ctx context.Context, sources map[netip.Addr]bool, mask uint32) (map[netip.Addr]uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	entries, err := f.conn.Dump(nil)
	if err != nil {
		return nil, wrap(err, "look for the marks of connections")
	}
	out := make(map[netip.Addr]uint32, len(sources))
	for _, e := range entries {
		if src := e.TupleOrig.IP.SourceAddress; sources[src] && e.Mark&mask != 0 {
			out[src] = e.Mark & mask
		}
	}
	return out, ctx.Err()
}
