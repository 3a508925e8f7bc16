// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"slices"
	"testing"
)

// A reader of the audit whose consumer goes, and whose copy lacks events, goes on
// with another one, and tells each event once.
func TestReadAuditGoesOn(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	a := startAudit(t, conn, "", 0)
	const n = 2000 // more than one pull
	for range n / 100 {
		if err := a.EmitAll(slices.Repeat([]Event{{Kind: "tenant"}}, 100)); err != nil {
			t.Fatal(err)
		}
	}
	allPublished(t, a)
	stream := must(srv.raw().Stream(within(t), AuditStream))
	got := map[uint64]int{}
	r := &auditReader{conn: conn, want: n + 1, fn: func(e AuditEvent) error {
		if got[e.NatsSequence]++; len(got) == n/2 {
			for name := range stream.ConsumerNames(within(t)).Name() {
				if err := stream.DeleteConsumer(within(t), name); err != nil {
					return err
				}
			}
		}
		return nil
	}}
	var err error
	attempts := 0
	for err = r.read(within(t)); err != nil; err = r.read(within(t)) {
		attempts++
		if r.vain++; r.vain > maxVain {
			t.Fatal(err)
		}
	}
	if len(got) != n || attempts < maxVain {
		t.Fatalf("%d of %d events, %d attempts in vain: %v", len(got), n, attempts, err)
	}
	for seq, times := range got {
		if times != 1 {
			t.Fatalf("event %d was told %d times", seq, times)
		}
	}
}
