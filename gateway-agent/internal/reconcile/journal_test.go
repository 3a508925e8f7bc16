// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/shared/tenant"
)

// TestJournal saves random changes one after the other, cuts the journal off
// wherever a crash may, and finds what had been saved by then.
func TestJournal(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	dir := t.TempDir()
	s, m := open(t, dir), remember(1, many(5), node("n1", 0))
	held, saved := Memory{}, []Memory{m.clone()}
	sizes := []int{0}
	for round := range 40 {
		if _, err := s.Save(held, compare(held, m)); err != nil {
			t.Fatal(err)
		}
		held = m.clone()
		if round > 0 {
			saved, sizes = append(saved, m.clone()), append(sizes, len(journalOf(t, dir)))
		}
		m = m.clone()
		alter(r, &m, round)
	}
	if sizes[len(sizes)-1] == 0 || strings.Contains(string(stateOf(t, dir)), `"generation":30`) {
		t.Fatal("the changes did not go to the journal")
	}
	whole, state := journalOf(t, dir), stateOf(t, dir)
	cuts := slices.Clone(sizes)
	for at := 0; at <= len(whole); at += 101 {
		cuts = append(cuts, at)
	}
	for _, size := range sizes[1:] {
		cuts = append(cuts, size-1, min(size+1, len(whole)))
	}
	for _, cut := range cuts {
		again := t.TempDir()
		write(t, again, state, whole[:cut])
		l, err := open(t, again).Load()
		last := 0
		for i, size := range sizes {
			if size <= cut {
				last = i
			}
		}
		if err != nil || l.Corrupt != nil || len(l.Problems) > 0 {
			t.Fatalf("cut off at %d: %+v %v", cut, l, err)
		}
		if d := cmp.Diff(saved[last], l.Memory, sameValues); d != "" {
			t.Fatalf("cut off at %d, save %d (-saved +found)\n%s", cut, last, d)
		}
	}
	damaged := bytes.Clone(whole)
	damaged[sizes[2]-20] ^= 1
	write(t, dir, state, damaged)
	if l, err := open(t, dir).SetAside(time.Time{}); err != nil || l.Corrupt == nil {
		t.Errorf("damage within the journal is not told: %+v %v", l, err)
	}
}

// TestJournalEnds: a restart and a full journal have the copy written anew, and what is left of
// an older journal says nothing any more.
func TestJournalEnds(t *testing.T) {
	dir := t.TempDir()
	s, held, m := open(t, dir), Memory{}, remember(1, many(5))
	save := func() {
		t.Helper()
		if wrote, err := s.Save(held, compare(held, m)); err != nil || !wrote {
			t.Fatalf("wrote %t, %v", wrote, err)
		}
		held = m
		m = m.clone()
		delete(m.Clusters["c1"].Tenants, sortedKeys(m.Clusters["c1"].Tenants)[0])
	}
	save()
	save()
	old := journalOf(t, dir)
	if err := s.rewrite(held); err != nil {
		t.Fatal(err)
	}
	write(t, dir, stateOf(t, dir), old)
	l, err := open(t, dir).Load()
	if err != nil || len(l.Memory.Clusters["c1"].Tenants) != 4 {
		t.Fatalf("%+v %v", l, err)
	}
	save()
	s = open(t, dir)
	if l, err = s.Load(); err != nil || len(l.Memory.Clusters["c1"].Tenants) != 3 {
		t.Fatalf("%+v %v", l, err)
	}
	save()
	if l, err = open(t, dir).Load(); err != nil || len(l.Memory.Clusters["c1"].Tenants) != 2 {
		t.Fatalf("%+v %v", l, err)
	}
}

func alter(r *rand.Rand, m *Memory, round int) {
	c := m.Clusters["c1"]
	c.Generation = int64(round + 2)
	names := sortedKeys(c.Tenants)
	switch r.IntN(5) {
	case 0:
		c.Tenants[names[0]] = Entry{Number: round + 100, Record: c.Tenants[names[0]].Record}
	case 1:
		if len(names) > 2 {
			delete(c.Tenants, names[1])
			m.Departing = append(m.Departing, Removal{Ref: Ref{"c1", names[1]}, UID: "u", EgressIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
		}
	case 2:
		c.Nodes["n2"] = node("n2", 1)
		m.Departing = nil
	case 3:
		delete(c.Nodes, "n2")
		m.Clusters["c2"] = Cluster{Generation: 7, Tenants: map[string]Entry{}, Nodes: map[string]tenant.Node{}}
	case 4:
		delete(m.Clusters, "c2")
	}
	m.Clusters["c1"] = c
}

// TestEqualLooksAtEveryField changes each field of the records by itself: one
// that equal does not look at would not be saved.
func TestEqualLooksAtEveryField(t *testing.T) {
	e := Entry{Record: record("blue", 13)}
	fields(t, reflect.ValueOf(&e).Elem(), func() bool { return e.equal(Entry{Record: record("blue", 13)}) })
	n, n0 := node("n1", 0), node("n1", 0)
	fields(t, reflect.ValueOf(&n).Elem(), func() bool { return sameNode(n, n0) })
	w := tenant.Network{}
	fields(t, reflect.ValueOf(&w).Elem(), func() bool { return sameNetwork(&w, &tenant.Network{}) })
	gone := Removal{}
	fields(t, reflect.ValueOf(&gone).Elem(), func() bool { return gone.equal(Removal{}) })
}

func fields(t *testing.T, v reflect.Value, equal func() bool) {
	t.Helper()
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Struct {
			fields(t, f, equal)
			continue
		}
		old := reflect.ValueOf(f.Interface())
		switch f.Kind() {
		case reflect.Bool:
			f.SetBool(!f.Bool())
		case reflect.String:
			f.SetString(f.String() + "x")
		case reflect.Int, reflect.Int64:
			f.SetInt(f.Int() + 1)
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), f.Len()+1, f.Len()+1))
		default:
			t.Fatalf("field %s has kind %s", v.Type().Field(i).Name, f.Kind())
		}
		if equal() {
			t.Errorf("%s: field %s is not compared", v.Type(), v.Type().Field(i).Name)
		}
		f.Set(old)
	}
	if !equal() {
		t.Fatalf("%s differs from itself", v.Type())
	}
}

func journalOf(t *testing.T, dir string) []byte { return fileOf(t, filepath.Join(dir, journalName)) }
func stateOf(t *testing.T, dir string) []byte   { return fileOf(t, filepath.Join(dir, stateName)) }

func fileOf(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, dir string, state, journal []byte) {
	t.Helper()
	for name, b := range map[string][]byte{stateName: state, journalName: journal} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzReplay: whatever stands in a journal, a state comes out, or an error.
func FuzzReplay(f *testing.F) {
	line, _, err := encodeDelta("base", compare(Memory{}, remember(3, many(2), node("n1", 0))))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte("base\n"), line...))
	f.Add([]byte("base\n"))
	f.Add([]byte("base\n0 {}\n0 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := Memory{Clusters: map[string]Cluster{}}
		if lines, err := replay(b, "base", &m); err != nil && lines < 0 {
			t.Error(lines)
		}
		dropInvalid(m)
	})
}
