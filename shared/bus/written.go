// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"maps"
	"slices"

	"egress-gateway.io/shared/tenant"
)

// maxWritten is how many tenants a view may differ in to be made from the one
// before it.
const maxWritten = 64

// written is what was written to a cluster's records since a view of them was
// confirmed.
type written struct {
	after   uint64 // the view's Serial; 0: there is none, or too much was written
	changed map[string]bool
}

// add notes the write of a key that the digest covers, or of Ready.
func (w *written) add(key tenant.Key, bad bool) {
	switch {
	case w.after == 0 || key.Kind == tenant.KindReady:
	case key.Kind != tenant.KindTenant || bad || len(w.changed) == maxWritten:
		*w = written{}
	default:
		if w.changed == nil {
			w.changed = make(map[string]bool)
		}
		w.changed[key.Name] = true
	}
}

// tenants returns the names of the tenants that were written since before, in
// order. only is false if other records were, or all of them have to be looked at.
func (w written) tenants(before View) (names []string, only bool) {
	if w.after == 0 || w.after != before.Serial || len(before.Problems) > 0 {
		return nil, false
	}
	return slices.Sorted(maps.Keys(w.changed)), true
}
