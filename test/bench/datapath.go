// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"egress-gateway.io/test/bench/datapath"
)

// datapath measures the data path and writes table, JSON and plot.
func (o *options) datapath(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "egress-gateway-bench-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintln(os.Stderr, "bench: logs are kept in", dir)
		}
	}()
	agent, err := filepath.Abs(filepath.Join(o.root, "build/bin/gateway-agent"))
	if err != nil {
		return err
	}
	rows, err := datapath.Run(ctx, datapath.Options{
		Tenants: o.counts, Rules: o.rules, Metrics: o.metrics, Rounds: o.rounds, Agent: agent, Dir: dir, Log: os.Stderr,
	})
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	base := filepath.Join(o.out, "datapath")
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(base+".json", append(text, '\n'), 0o644), datapath.Plot(rows, base)); err != nil {
		return err
	}
	if err := table(os.Stdout, rows); err != nil {
		return err
	}
	fmt.Printf("written to %[1]s.json, %[1]s.svg, %[1]s.png\n", base)
	return nil
}

// aims are the ratios that our rules should reach with 4,000 tenants.
func aims() map[string]float64 {
	return map[string]float64{datapath.Established: 0.77, datapath.NewUDP: 0.65, datapath.TCP: 0.88, datapath.Bulk: 0.95}
}

func table(w io.Writer, rows []datapath.Row) error {
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tab, "RULES\tTENANTS\tMETRIC\tRATIO TO PLAIN\tPER CPU SECOND\tAIM")
	for _, r := range rows {
		rate, unit := r.Rate, "packets"
		switch r.Metric {
		case datapath.NewUDP:
			unit = "flows"
		case datapath.TCP:
			unit = "connections"
		case datapath.Bulk:
			rate, unit = rate/1e6, "Mbit"
		}
		aim := ""
		if r.Rules == datapath.Ours && r.Tenants == datapath.MaxTenants {
			aim = fmt.Sprintf("%.2f", aims()[r.Metric])
			if r.Ratio < aims()[r.Metric] {
				aim += "  MISSED"
			}
		}
		fmt.Fprintf(tab, "%s\t%d\t%s\t%.2f\t%.0f %s\t%s\n", r.Rules, r.Tenants, r.Metric, r.Ratio, rate, unit, aim)
	}
	return tab.Flush()
}
