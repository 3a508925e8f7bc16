// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/test/bench/datapath"
)

// full is a result with every question answered.
func full() []datapath.Row {
	var rows []datapath.Row
	for _, tenants := range []int{1, 1000, datapath.MaxTenants} {
		for _, rules := range []string{datapath.Ours, datapath.Linear} {
			for _, metric := range datapath.Metrics() {
				row := datapath.Row{Rules: rules, Tenants: tenants, Metric: metric, Ratio: 0.8, Rate: 8e8}
				if metric == datapath.NewUDP && tenants > 1 {
					row.Ratio, row.Rate = 0.72, 90_000
				}
				rows = append(rows, row)
			}
		}
	}
	return rows
}

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := table(&b, full()); err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{}
	for line := range strings.Lines(b.String()) {
		words := strings.Fields(line)
		lines[strings.Join(words[:3], " ")] = strings.Join(words[3:], " ")
	}
	for row, want := range map[string]string{
		"RULES TENANTS METRIC":  "RATIO TO PLAIN PER CPU SECOND PLAIN AIM AGAINST 1 TENANT",
		"ours 1 new_udp":        "0.800 800000000 flows 1000000000",
		"ours 1000 new_udp":     "0.720 90000 flows 125000 0.900 MISSED",
		"ours 4000 new_udp":     "0.720 90000 flows 125000 0.65 0.900 MISSED",
		"ours 4000 tcp":         "0.800 800000000 connections 1000000000 0.88 MISSED 1.000",
		"ours 4000 bulk":        "0.800 800 Mbit 1000 0.95 MISSED 1.000",
		"linear 4000 new_udp":   "0.720 90000 flows 125000 0.900",
		"ours 4000 established": "0.800 800000000 packets 1000000000 0.77 1.000",
	} {
		if lines[row] != want {
			t.Errorf("%s: %q, want %q", row, lines[row], want)
		}
	}
}

func TestJSONKeys(t *testing.T) {
	base := filepath.Join(t.TempDir(), "new", "datapath")
	if err := save(t.Output(), full(), base, "caption", time.Now()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(base + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(text, &rows); err != nil || len(rows) != len(full()) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if diff := cmp.Diff([]string{"metric", "rate", "ratio", "rules", "tenants"}, slices.Sorted(maps.Keys(rows[0]))); diff != "" {
		t.Errorf("keys (-want +got)\n%s", diff)
	}
}

// A run of a part may not cost the result of a long one; the same run again
// replaces what it gave before.
func TestPartDoesNotDestroyTheWhole(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "datapath")
	start := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	part := full()[:1]
	for i, rows := range [][]datapath.Row{full(), full(), part, part} {
		if err := save(t.Output(), rows, base, "caption", start.Add(time.Duration(i)*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) int {
		text, err := os.ReadFile(filepath.Join(dir, name))
		var rows []datapath.Row
		if err != nil || json.Unmarshal(text, &rows) != nil {
			t.Errorf("%s: %v", name, err)
		}
		return len(rows)
	}
	const kept = "datapath-until-20261122-090200"
	if n := read("datapath.json"); n != 1 {
		t.Errorf("the last result has %d rows, want 1", n)
	}
	if n := read(kept + ".json"); n != len(full()) {
		t.Errorf("the kept result has %d rows, want %d", n, len(full()))
	}
	var want, got []string
	for _, base := range []string{"datapath", kept} {
		for _, ending := range endings() {
			want = append(want, base+ending)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got)\n%s", diff)
	}
}
