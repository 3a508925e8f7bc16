// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"egress-gateway.io/shared/tenant"
)

// Whatever stands in the bucket, a view changes only with a Ready record that
// fits, and nothing panics.
func FuzzFollower(f *testing.F) {
	good := aTenant("c1", 0, 1)
	ready := tenant.Ready{Schema: tenant.Schema, Cluster: "c1", Epoch: incarnation{}.epoch(), Generation: 5}
	f.Add("c1.tenant.ns-0", tenant.Encode(good), "c1.meta.ready", tenant.Encode(ready))
	f.Add("c1.meta.heartbeat", []byte(`{"schema":1,"cluster":"c1"}`), "c1.tenant.ns-0", []byte("{"))
	f.Add("", []byte(nil), ".", []byte("null"))
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2 []byte) {
		fo := NewFollower(nil, FollowerOptions{
			Log:     quiet(),
			Initial: map[string]View{"c1": {Ready: tenant.Ready{Generation: 4}, Tenants: []tenant.Tenant{good}}},
		})
		fo.loaded()
		fo.apply([]entry{{key: key1, value: value1, rev: 1}, {key: key2, value: value2, rev: 2}})
		fo.tick()
		for name, v := range fo.Views() {
			if v.Ready.Generation == 4 && len(v.Tenants) != 1 {
				t.Fatal("a tenant went without a new Ready record")
			}
			if v.Ready.Generation != 4 && v.Ready.Cluster != name {
				t.Fatalf("view %q of %q", name, v.Ready.Cluster)
			}
		}
	})
}

func FuzzStatusFollower(f *testing.F) {
	for key, value := range report("gw1", 1, 1) {
		f.Add(key, value)
	}
	f.Add("gw1.tenant.c1", []byte(`{"schema":1}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		fo := NewStatusFollower(nil, StatusOptions{Log: quiet()})
		fo.loaded()
		fo.apply([]entry{{key: key, value: value, rev: 1}})
		if n := len(fo.Summaries()) + len(fo.statuses) + len(fo.bad); n != 1 {
			t.Fatalf("told %d times", n)
		}
		fo.apply([]entry{{key: key, gone: true, rev: 2}})
		if n := len(fo.Summaries()) + len(fo.statuses) + len(fo.bad); n != 0 {
			t.Fatal("a removed key is still told")
		}
	})
}

// The writer turns whatever the bucket holds into what is wanted, in one go.
func FuzzWriterDiff(f *testing.F) {
	f.Add("c1.tenant.ns-0", []byte("garbage"), "c1.meta.ready", []byte(`{"schema":1,"cluster":"c1","generation":9}`))
	f.Add("c1.tenant.ns-7", tenant.Encode(aTenant("c1", 7, 1)), "c1.node.x", []byte(nil))
	f.Fuzz(func(t *testing.T, key1 string, value1 []byte, key2 string, value2 []byte) {
		w := NewWriter(nil, "c1", WriterOptions{Log: quiet()})
		want, err := w.encode(aState("c1", 2))
		if err != nil {
			t.Fatal(err)
		}
		m := mirror{entries: map[string]entry{}}
		now := time.Now()
		m.store(entry{key: key1, value: value1, rev: 1, time: now})
		m.store(entry{key: key2, value: value2, rev: 2, time: now})
		writes, _ := w.diff(m, want)
		for i, wr := range writes {
			m.store(entry{key: wr.key, value: wr.value, gone: wr.purge, rev: uint64(10 + i), time: now})
		}
		if writes, _ := w.diff(m, want); len(writes) != 0 {
			t.Fatalf("a second pass writes %d keys", len(writes))
		}
		for key, value := range want {
			if !bytes.Equal(m.entries[key].value, value) {
				t.Fatalf("%s is not as wanted", key)
			}
		}
		if _, due := w.ready(m); !due && m.entries["c1.meta.ready"].value == nil {
			t.Fatal("no Ready record")
		}
	})
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(`{"specversion":"1.0","id":"a","source":"b","type":"io.egress-gateway.v1.alloc","time":"2026-01-02T03:04:05Z","data":{}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := DecodeEvent(b)
		if err == nil && (e.ID == "" || e.Kind == "" || e.Source == "") {
			t.Fatalf("%+v", e)
		}
	})
}

func FuzzDecodeSpooled(f *testing.F) {
	f.Add([]byte(`{"subject":"a","id":"b","event":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeSpooled(b); err == nil && (s.Subject == "" || s.ID == "") {
			t.Fatalf("%+v", s)
		}
	})
}

// A spool file with anything in it opens, hands out only what has a right
// checksum, and takes further events.
func FuzzSpoolFile(f *testing.F) {
	line := encodeLine([]byte(`{"subject":"a","id":"b","event":{}}`))
	f.Add(line)
	f.Add(append(bytes.Clone(line), line[:7]...))
	f.Add([]byte("\n\n00000000 \nxxxxxxxx {}\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "0000000000000001"+segmentSuffix), content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSpool(dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if err := s.append(func() ([][]byte, error) { return [][]byte{[]byte(`"last"`)}, nil }); err != nil {
			t.Fatal(err)
		}
		var texts [][]byte
		for s.pending() > 0 {
			got, err := s.take(3)
			if err != nil || len(got.texts) == 0 {
				t.Fatal(got, err)
			}
			texts = append(texts, got.texts...)
			if err := s.settle(got, len(got.texts)); err != nil {
				t.Fatal(err)
			}
		}
		if len(texts) == 0 || string(texts[len(texts)-1]) != `"last"` {
			t.Fatalf("%q", texts)
		}
	})
}
