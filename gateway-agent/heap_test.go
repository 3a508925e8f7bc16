// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime/debug"
	"testing"

	"egress-gateway.io/gateway-agent/internal/reconcile"
)

// TestHeapIsSmallWhileNothingHappens: once a look at everything has found nothing
// to do, little garbage may gather, until something changes. An operator who has
// decided how much may is obeyed.
func TestHeapIsSmallWhileNothingHappens(t *testing.T) {
	const begun = 80
	before := debug.SetGCPercent(begun)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	percent := func() int {
		p := debug.SetGCPercent(begun)
		debug.SetGCPercent(p)
		return p
	}
	type step struct {
		pass reconcile.Pass
		want int
	}
	follow := func(what string, h *heap, steps []step) {
		t.Helper()
		for i, s := range steps {
			h.passed(s.pass)
			select {
			case <-h.due.C():
				h.tidy()
			default:
			}
			if percent() != s.want {
				t.Errorf("%s, pass %d: %d %%, want %d", what, i, percent(), s.want)
			}
		}
	}
	program, change := reconcile.Pass{Kind: reconcile.PassWhole, Steps: 9}, reconcile.Pass{Kind: reconcile.PassPart, Steps: 9}
	verify, none := reconcile.Pass{Kind: reconcile.PassWhole}, reconcile.Pass{Kind: reconcile.PassNone}
	t.Setenv("GOGC", "80")
	follow("set by the operator", newHeap(), []step{{program, begun}, {verify, begun}, {change, begun}})
	t.Setenv("GOGC", "")
	follow("by itself", newHeap(), []step{
		{none, begun}, {program, garbageBusy}, {none, garbageBusy}, {verify, garbageCalm}, {none, garbageCalm}, {verify, garbageCalm},
		{change, garbageBusy}, {none, garbageBusy}, {change, garbageBusy}, {verify, garbageCalm}, {program, garbageBusy},
	})
}
