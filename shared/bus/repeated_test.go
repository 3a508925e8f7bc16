// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
)

// A process that tells again what an earlier one told says so: the numbers that
// the stream lacks are no lost events.
func TestRepeatedEventsAreTold(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	tell := func(from, to int) *Audit {
		a := startAudit(t, conn, t.TempDir(), 0)
		for i := from; i <= to; i++ {
			if err := a.Emit(Event{Kind: "tenant", ID: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		allPublished(t, a)
		return a
	}
	tell(1, 4)
	second := tell(3, 6)
	events := stored(t, conn, AuditFilter{Kind: KindRepeated})
	if n := len(stored(t, conn, AuditFilter{Kind: "tenant"})); n != 6 || len(events) == 0 {
		t.Fatalf("%d events, and %d that tell of repeated ones", n, len(events))
	}
	numbers := map[uint64]bool{}
	for _, e := range events {
		list, err := DecodeRepeated(e.Data)
		if err != nil || e.BootID != second.bootID {
			t.Fatalf("%s: %v", e.Data, err)
		}
		for _, r := range list {
			for n := r.First; n <= r.Last; n++ {
				numbers[n] = r.BootID == second.bootID
			}
		}
	}
	for _, e := range stored(t, conn, AuditFilter{}) {
		if e.BootID == second.bootID && e.Sequence <= "2" {
			t.Errorf("event %s is there after all", e.Sequence)
		}
	}
	if !reflect.DeepEqual(numbers, map[uint64]bool{1: true, 2: true}) {
		t.Errorf("repeated: %v", numbers)
	}
}

func FuzzDecodeRepeated(f *testing.F) {
	f.Add([]byte(`{"events":[{"bootid":"b","first":2,"last":3},{"bootid":"c","first":9,"last":9}]}`))
	f.Add([]byte(`{"events":[{"bootid":"b","first":0,"last":18446744073709551615},{"first":3,"last":2}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodeRepeated(json.RawMessage(b))
		if err != nil {
			return
		}
		var n uint64
		for _, r := range list {
			if r.First > r.Last || r.Last-r.First >= publishWindow {
				t.Fatalf("%+v", r)
			}
			n += r.Last - r.First + 1
		}
		if n == 0 || n > publishWindow {
			t.Fatalf("%d numbers in %s", n, b)
		}
	})
}
