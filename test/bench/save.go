// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"egress-gateway.io/test/bench/datapath"
)

// endings are those of the files of a result.
func endings() []string { return []string{".json", ".svg", ".png"} }

// save writes what was measured as <base>.json, .svg and .png, and a table to w.
// An earlier result with rows that this one has not is kept under another name.
func save(w io.Writer, rows []datapath.Row, base, caption string, now time.Time) error {
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(base), 0o755); err != nil {
		return err
	}
	kept, err := keepLarger(rows, base, now)
	if err != nil {
		return fmt.Errorf("keep the result before: %w", err)
	}
	if err := errors.Join(os.WriteFile(base+".json", append(text, '\n'), 0o644), datapath.Plot(rows, base, caption)); err != nil {
		return err
	}
	fmt.Fprintln(w, caption)
	if err := table(w, rows); err != nil {
		return err
	}
	fmt.Fprintf(w, "written to %[1]s.json, %[1]s.svg, %[1]s.png\n", base)
	if kept != "" {
		fmt.Fprintf(w, "the result before, which has rows that this one has not, is now %[1]s.json, %[1]s.svg, %[1]s.png\n", kept)
	}
	return nil
}

// keepLarger renames the result at base if rows do not cover it, and returns
// its new base, which holds the time. A result that can not be read is kept too.
func keepLarger(rows []datapath.Row, base string, now time.Time) (string, error) {
	text, err := os.ReadFile(base + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var before []datapath.Row
	if json.Unmarshal(text, &before) == nil && covers(rows, before) {
		return "", nil
	}
	kept := base + "-until-" + now.Format("20060102-150405")
	for _, ending := range endings() {
		if err := os.Rename(base+ending, kept+ending); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return kept, nil
}

// covers tells whether rows answer each question that before answers.
func covers(rows, before []datapath.Row) bool {
	for _, b := range before {
		if _, ok := find(rows, b.Rules, b.Metric, b.Tenants); !ok {
			return false
		}
	}
	return true
}

func find(rows []datapath.Row, rules, metric string, tenants int) (datapath.Row, bool) {
	for _, r := range rows {
		if r.Rules == rules && r.Metric == metric && r.Tenants == tenants {
			return r, true
		}
	}
	return datapath.Row{}, false
}

// ofOne is the least that our ratio for many tenants may be of that for one.
const ofOne = 0.95

func table(w io.Writer, rows []datapath.Row) error {
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tab, "RULES\tTENANTS\tMETRIC\tRATIO TO PLAIN\tPER CPU SECOND\tPLAIN\tAIM\tAGAINST 1 TENANT")
	for _, r := range rows {
		unit, scale := "packets", 1.0
		switch r.Metric {
		case datapath.NewUDP:
			unit = "flows"
		case datapath.TCP:
			unit = "connections"
		case datapath.Bulk:
			unit, scale = "Mbit", 1e6
		}
		aim := ""
		if r.Rules == datapath.Ours && r.Tenants == datapath.MaxTenants {
			aim = verdict(fmt.Sprintf("%.2f", datapath.Aims()[r.Metric]), r.Ratio < datapath.Aims()[r.Metric])
		}
		against := ""
		if one, ok := find(rows, r.Rules, r.Metric, 1); ok && r.Tenants > 1 {
			part := r.Ratio / one.Ratio
			against = verdict(fmt.Sprintf("%.3f", part), r.Rules == datapath.Ours && part < ofOne)
		}
		fmt.Fprintf(tab, "%s\t%d\t%s\t%.3f\t%.0f %s\t%.0f\t%s\t%s\n", r.Rules, r.Tenants, r.Metric, r.Ratio, r.Rate/scale, unit, r.Rate/r.Ratio/scale, aim, against)
	}
	return tab.Flush()
}

func verdict(text string, missed bool) string {
	if missed {
		return text + "  MISSED"
	}
	return text
}
