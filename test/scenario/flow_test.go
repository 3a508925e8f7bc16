// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestOutages(t *testing.T) {
	at := func(n uint64) time.Time { return time.Unix(0, 0).Add(time.Duration(n) * time.Second) }
	times := func(list ...uint64) map[uint64]time.Time {
		out := map[uint64]time.Time{}
		for _, n := range list {
			out[n] = at(n)
		}
		return out
	}
	got := outages(times(3, 4, 6, 9), times(5, 12), time.Second)
	want := []Outage{{at(3), at(7), 3}, {at(9), at(10), 1}, {at(12), at(13), 0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
