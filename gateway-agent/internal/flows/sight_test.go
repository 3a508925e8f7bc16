// SPDX-License-Identifier: Apache-2.0

package flows_test

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/ti-mo/conntrack"
)

// TestLookKeepsNothing: to look for what there is hardly any of takes no memory
// for all that is there. A full table is looked at every 30 s.
func TestLookKeepsNothing(t *testing.T) {
	n, f := table(t)
	const many = 10_000
	n.Do(func() {
		c, err := conntrack.Dial(nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		for i := range many {
			source := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
			if err := c.Create(conntrack.NewFlow(17, 0, source, netip.MustParseAddr("203.0.113.10"), 1024, 53, 600, 0x500000)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	deleted, marks := 0, map[netip.Addr]uint32{}
	n.Do(func() {
		var err error
		if deleted, err = f.DeleteUntranslated(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")}); err != nil {
			t.Error(err)
		}
		if marks, err = f.MarksOf(t.Context(), map[netip.Addr]bool{netip.MustParseAddr("10.1.0.7"): true}, mask); err != nil {
			t.Error(err)
		}
	})
	runtime.ReadMemStats(&after)
	if deleted != 3 || len(marks) != 1 {
		t.Errorf("%d deleted, marks %v", deleted, marks)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes for each of %d entries that nobody asked for", used/many, many)
	}
}
