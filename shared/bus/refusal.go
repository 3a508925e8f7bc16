// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"fmt"
	"maps"
)

// refusal is why what was read of a cluster can not be trusted.
type refusal struct {
	reason  string
	err     error
	passing bool // the rest of a batch of writes is likely to lift it
}

// The reasons of refusals.
const (
	rejectedUnreadable = "unreadable"
	rejectedEmpty      = "empty"
	rejectedUnclosed   = "unclosed"
	rejectedBucket     = "other_bucket"
	rejectedOlder      = "older"
	rejectedIncomplete = "incomplete"
	rejectedMismatch   = "mismatch"
)

// refusal returns nil if what was read of a cluster can be trusted.
func (f *Follower) refusal(c *cluster, before View) *refusal {
	no := func(reason string, passing bool, format string, args ...any) *refusal {
		return &refusal{reason, fmt.Errorf(format, args...), passing}
	}
	switch {
	case c.bad != nil:
		return &refusal{rejectedUnreadable, c.bad, false}
	case c.ready == nil && len(c.values) == 0:
		return no(rejectedEmpty, true, "the bucket holds nothing of this cluster; keeping what was confirmed")
	case c.ready == nil:
		return no(rejectedUnclosed, true, "records without a Ready record; waiting for the writer")
	case c.ready.Epoch != f.epoch:
		return no(rejectedBucket, false, "the Ready record is of another bucket (created %s, this one %s); waiting for the writer", c.ready.Epoch, f.epoch)
	case c.ready.Generation < before.Ready.Generation:
		return no(rejectedOlder, false, "generation went back from %d to %d; refused", before.Ready.Generation, c.ready.Generation)
	case c.ready.Count != len(c.values):
		return no(rejectedIncomplete, true, "%d records where generation %d has %d; waiting for the rest", len(c.values), c.ready.Generation, c.ready.Count)
	case c.ready.Hash != c.digest():
		return no(rejectedMismatch, true, "records do not match the hash of generation %d; waiting for the rest", c.ready.Generation)
	}
	return nil
}

// Rejected counts, by reason, the snapshots of clusters that were not taken.
// One that is only incomplete while a batch of writes arrives is not among them,
// unless the rest fails to come.
func (f *Follower) Rejected() map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.rejected)
}
