// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/shared/tenant"
)

// sameValues compares netip values by ==.
var sameValues = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

func TestStoreRoundTrip(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	want := remember(42, many(3), node("n1", 0), node("n2.example", 1))
	wrote, err := s.Save(want, nil)
	if err != nil || !wrote {
		t.Fatalf("first save: wrote %v, %v", wrote, err)
	}
	if wrote, err = s.Save(want, nil); err != nil || wrote {
		t.Errorf("same again: wrote %v, %v; want no write", wrote, err)
	}
	again := open(t, dir)
	l, err := again.SetAside(time.Time{})
	if err != nil || !l.Found || l.Corrupt != nil || len(l.Problems) > 0 {
		t.Fatalf("load: %+v, %v", l, err)
	}
	if diff := cmp.Diff(want, l.Memory, sameValues); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if wrote, err = again.Save(l.Memory, nil); err != nil || wrote {
		t.Errorf("after a restart: wrote %v, %v; want no write", wrote, err)
	}
}

func TestStoreWithoutCopy(t *testing.T) {
	l, err := open(t, t.TempDir()).SetAside(time.Time{})
	if err != nil || l.Found || l.Corrupt != nil || l.Memory.Clusters == nil {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestStoreSetsACorruptCopyAside(t *testing.T) {
	good, err := EncodeState(remember(42, many(3)))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"empty":          nil,
		"cut off":        good[:len(good)/2],
		"flipped":        bytes.Replace(good, []byte("192.168.55.101"), []byte("192.168.55.181"), 1),
		"garbage":        []byte("\x00\xff not json"),
		"another schema": bytes.Replace(good, []byte(`"schema":1`), []byte(`"schema":9`), 1),
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, stateName), content, 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			l, err := s.SetAside(time.Date(2026, 11, 21, 23, 5, 0, 0, time.UTC))
			if err != nil || l.Found || l.Corrupt == nil || len(l.Memory.Clusters) != 0 {
				t.Fatalf("%+v, %v", l, err)
			}
			kept, err := os.ReadFile(filepath.Join(dir, "state.json.corrupt-20261121T230500.000Z"))
			if err != nil || !bytes.Equal(kept, content) {
				t.Errorf("aside: %v", err)
			}
			if wrote, err := s.Save(l.Memory, nil); err != nil || !wrote {
				t.Errorf("save after that: %v, %v", wrote, err)
			}
		})
	}
}

func TestDecodeStateLeavesOutSingleBadRecords(t *testing.T) {
	m := remember(42, many(4), node("n1", 0))
	c := m.Clusters["c1"]
	change := func(name string, f func(*Entry)) {
		e := c.Tenants[name]
		f(&e)
		c.Tenants[name] = e
	}
	change("t01", func(e *Entry) { e.Record.EgressIPs = nil })
	change("t02", func(e *Entry) { e.Record.Name = "other" })
	change("t04", func(e *Entry) { e.Number = 3 })
	b, err := EncodeState(m)
	if err != nil {
		t.Fatal(err)
	}
	got, problems, err := DecodeState(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(problems) != 3 {
		t.Errorf("problems: %v", problems)
	}
	if diff := cmp.Diff([]Ref{{"c1", "t03"}, {"c1", "t04"}}, got.Refs()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if e, _ := got.Entry(Ref{"c1", "t04"}); e.Number != 0 {
		t.Errorf("t04 kept the number of t03: %d", e.Number)
	}
}

func TestStoreLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := open(t, dir).Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, dir).Lock(); !errors.Is(err, ErrRunning) {
		t.Errorf("second lock: %v, want ErrRunning", err)
	}
	if locked, err := open(t, dir).Locked(); err != nil || !locked {
		t.Errorf("while locked: %v, %v", locked, err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if locked, err := open(t, dir).Locked(); err != nil || locked {
		t.Errorf("after unlock: %v, %v", locked, err)
	}
	unlock, err = open(t, dir).Lock()
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestStoreConfirmation(t *testing.T) {
	dir := t.TempDir()
	m := remember(1, many(2))
	e := m.Clusters["c1"].Tenants["t02"]
	e.Held = true
	m.Clusters["c1"].Tenants["t02"] = e
	if err := open(t, dir).RequestConfirm(m); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	got, err := s.Confirmed()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[Ref]string{{"c1", "t02"}: "uid-t02"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if err := s.DropConfirmed(); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Confirmed(); err != nil || got != nil {
		t.Errorf("after drop: %v, %v", got, err)
	}
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// FuzzDecodeState: whatever stands on the disk, the decoder neither panics nor
// lets through a record that does not validate.
func FuzzDecodeState(f *testing.F) {
	seed := remember(42, many(2), node("n1", 0))
	c := seed.Clusters["c1"]
	c.Network = &tenant.Network{Schema: tenant.Schema, Cluster: "c1", PodNetworks: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")}}
	seed.Clusters["c1"] = c
	b, err := EncodeState(seed)
	if err != nil {
		f.Fatal(err)
	}
	_, state, _ := strings.Cut(string(b), `"state":`)
	f.Add([]byte(strings.TrimSuffix(strings.TrimSpace(state), "}")))
	f.Add([]byte(`{"clusters":{"c1":{"tenants":{"a":{"number":-1}},"nodes":{"":{}},"network":{}}}}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, state []byte) {
		// The checksum is made to fit, else nothing would get past it.
		file := []byte(`{"schema":1,"sha256":"` + sum(bytes.TrimSpace(state)) + `","state":` + string(state) + "}")
		m, _, err := DecodeState(file)
		if err != nil {
			return
		}
		numbers := map[int]bool{}
		for _, r := range m.Refs() {
			e, _ := m.Entry(r)
			if err := validateEntry(r.Cluster, r.Name, e); err != nil {
				t.Errorf("%s: %v", r, err)
			}
			if e.Number != 0 && numbers[e.Number] {
				t.Errorf("%s: number %d twice", r, e.Number)
			}
			numbers[e.Number] = true
		}
		for name, c := range m.Clusters {
			if c.Network != nil && c.Network.Validate() != nil {
				t.Errorf("network of %s: %v", name, c.Network.Validate())
			}
			for _, n := range c.Nodes {
				if err := n.Validate(); err != nil {
					t.Error(err)
				}
			}
		}
		again, err := EncodeState(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, problems, err := DecodeState(again); err != nil || len(problems) > 0 {
			t.Errorf("not stable: %v %v", problems, err)
		}
	})
}
