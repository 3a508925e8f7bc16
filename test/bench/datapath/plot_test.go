// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// figures of the given metrics, as they come out of a run.
func figures(rules []string, metrics ...string) []Row {
	var rows []Row
	for i, tenants := range []int{1, 40, 400, 1000, 4000} {
		for _, r := range rules {
			for _, m := range metrics {
				row := Row{Rules: r, Tenants: tenants, Metric: m, Ratio: 0.77, Rate: 1000}
				switch r {
				case Linear:
					row.Ratio = []float64{0.85, 0.69, 0.27, 0.14, 0.05}[i]
				case Unguarded:
					row.Ratio = 0.84
				}
				rows = append(rows, row)
			}
		}
	}
	return rows
}

func TestPlot(t *testing.T) {
	all := []string{Ours, Unguarded, Linear}
	for name, c := range map[string]struct {
		rules, metrics  []string
		legends, absent []string
	}{
		"all":   {all, Metrics(), []string{"plain forwarding", "aim at 4000 tenants", "egress-gateway", "egress-gateway without its guards", "one rule after the other"}, nil},
		"three": {all[:1], []string{Established, TCP, Bulk}, []string{"egress-gateway"}, []string{"one rule after the other", "egress-gateway without its guards"}},
		"two":   {all, []string{NewUDP, Bulk}, nil, nil},
		"one":   {all, []string{TCP}, []string{"aim at 4000 tenants"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join(t.TempDir(), "datapath")
			const caption = "2026-11-22, IPv4, rules by iptables 1.8.9 (nf_tables)"
			if err := Plot(figures(c.rules, c.metrics...), base, caption); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(base + ".svg")
			if err != nil {
				t.Fatal(err)
			}
			shows := func(s string) bool { return strings.Contains(string(text), ">"+s+"<") }
			for _, s := range append(c.legends, caption) {
				if !shows(s) {
					t.Errorf("the SVG does not show %q", s)
				}
			}
			for _, s := range c.absent {
				if shows(s) {
					t.Errorf("the SVG shows %q", s)
				}
			}
			measured := strings.Join(c.metrics, " ")
			for metric, title := range titles() {
				if want := strings.Contains(measured, metric); shows(title) != want {
					t.Errorf("the SVG shows the panel %q: %v, want %v", title, !want, want)
				}
			}
			f, err := os.Open(base + ".png")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := png.Decode(f); err != nil {
				t.Errorf("the PNG: %v", err)
			}
		})
	}
	if err := Plot(nil, filepath.Join(t.TempDir(), "none"), ""); err == nil {
		t.Error("a plot of nothing was drawn")
	}
}
