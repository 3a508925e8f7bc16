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
	out := make(map[netip.Addr]uint32, len(sources))
	err := f.look(ctx, func(s sight, _ []byte) {
		if sources[s.source] && s.mark&mask != 0 {
			out[s.source] = s.mark & mask
		}
	})
	return out, wrap(err, "look for the marks of connections")
}
