// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"strings"
	"testing"
)

// What the dashboard asks for exists. test/e2e asks a real Prometheus for it.
func TestDashboardNamesWhatExists(t *testing.T) {
	t.Parallel()
	registry, err := ReadRegistry(root)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ReadDashboard(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Queries()) < 40 {
		t.Errorf("only %d queries were found", len(d.Queries()))
	}
	for _, q := range d.Queries() {
		expr := q.PromQL("1m")
		if strings.Contains(expr, "$") {
			t.Errorf("%s: a variable is left in %s", q.Panel, expr)
		}
		for _, wrong := range registry.Check(expr) {
			t.Errorf("%s: %s", q.Panel, wrong)
		}
	}
	for _, v := range d.Vars.List {
		if v.Type != "query" {
			continue
		}
		inner, ok := strings.CutPrefix(v.Definition, "label_values(")
		expr, label, ok2 := strings.Cut(strings.TrimSuffix(inner, ")"), ", ")
		if !ok || !ok2 {
			t.Errorf("variable %s: %s", v.Name, v.Definition)
			continue
		}
		if wrong := registry.Check("sum by (" + label + ") (" + expr + ")"); len(wrong) > 0 {
			t.Errorf("variable %s: %v", v.Name, wrong)
		}
	}
}

// Panels explain themselves and do not lie on one another.
func TestDashboardPanels(t *testing.T) {
	t.Parallel()
	d, err := ReadDashboard(root)
	if err != nil {
		t.Fatal(err)
	}
	ids, cells := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: the id %d stands twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type != "row" && (p.Title == "" || p.Description == "") {
			t.Errorf("panel %d (%s) has no title or no description", p.ID, p.Title)
		}
		if p.Grid.X+p.Grid.W > 24 {
			t.Errorf("%s is wider than the screen", p.Title)
		}
		for x := p.Grid.X; x < p.Grid.X+p.Grid.W; x++ {
			for y := p.Grid.Y; y < p.Grid.Y+p.Grid.H; y++ {
				if other, taken := cells[[2]int{x, y}]; taken && other != p.Title {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
	}
}
