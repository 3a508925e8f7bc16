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
	"strconv"
	"text/tabwriter"
	"time"

	"egress-gateway.io/test/bench/datapath"
)

// datapath measures the data path and writes table, JSON and plot.
func (o *options) datapath(ctx context.Context) error {
	return o.inDir(func(dir, agent string) error {
		rows, err := datapath.Run(ctx, datapath.Options{
			Tenants: o.counts, Rules: o.rules, Metrics: o.metrics, Rounds: o.rounds, Agent: agent, Dir: dir, Log: os.Stderr, Backend: o.backend, Families: o.families,
		})
		if err != nil {
			return err
		}
		text, err := json.MarshalIndent(rows, "", "  ")
		if err != nil {
			return err
		}
		base := filepath.Join(o.out, "datapath"+o.suffix())
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
	})
}

// suffix of the files: none for IPv4.
func (o *options) suffix() string {
	if o.family == 4 {
		return ""
	}
	return strconv.Itoa(o.family)
}

// programming measures how fast the agent programs, and what it costs idle.
func (o *options) programming(ctx context.Context) error {
	return o.inDir(func(dir, agent string) error {
		nats, err := o.server()
		if err != nil {
			return err
		}
		n := o.counts[0]
		p, err := datapath.Program(ctx, datapath.Options{Agent: agent, Dir: dir, Log: os.Stderr, Families: o.families}, n, o.samples, nats)
		if err != nil {
			return err
		}
		b := &bench{o: *o}
		b.add("all tenants from an empty kernel to the last one's first connection", n, p.FromEmpty.Seconds(), "s", 4)
		for _, c := range []struct {
			name string
			took []time.Duration
			aim  float64
		}{{"added", p.Added, 30}, {"removed", p.Gone, 30}, {"added, its addresses asked for first (GATEWAY_PROBE_WAIT=60ms)", p.Asked, 0}} {
			b.add("one tenant "+c.name+", from record to kernel, p50", n, ms(percentile(c.took, 50)), "ms", 0)
			b.add("one tenant "+c.name+", from record to kernel, p99", n, ms(percentile(c.took, 99)), "ms", c.aim)
		}
		b.add("observe and compare", n, ms(p.Pass), "ms", 300)
		b.addIdle(n, p.Idle)
		return b.write("programming" + o.suffix() + ".json")
	})
}

// idle measures what the agent costs while nothing changes.
func (o *options) idle(ctx context.Context) error {
	return o.inDir(func(dir, agent string) error {
		nats, err := o.server()
		if err != nil {
			return err
		}
		n := o.counts[0]
		i, err := datapath.Rest(ctx, datapath.Options{Agent: agent, Dir: dir, Log: os.Stderr, Families: o.families}, n, nats, o.idleFor)
		if err != nil {
			return err
		}
		b := &bench{o: *o}
		b.addIdle(n, i)
		return b.write("idle" + o.suffix() + ".json")
	})
}

func (b *bench) addIdle(n int, i datapath.Idle) {
	b.add("idle agent, of one processor", n, 100*i.CPU, "%", 1)
	b.add("idle agent, resident", n, i.MiB, "MiB", 96)
	b.add("idle agent, wake-ups of its threads", n, i.Wakeups, "a second", 0)
}

// server is the NATS server that stands beside the agent.
func (o *options) server() (string, error) {
	return filepath.Abs(filepath.Join(o.root, "build/bin/nats-server"))
}

// inDir runs f with a directory for logs, which stays if it fails, and with
// the agent's path.
func (o *options) inDir(f func(dir, agent string) error) error {
	dir, err := os.MkdirTemp("", "egress-gateway-bench-")
	if err != nil {
		return err
	}
	agent, err := filepath.Abs(filepath.Join(o.root, "build/bin/gateway-agent"))
	if err == nil {
		err = f(dir, agent)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: logs are kept in", dir)
		return err
	}
	return os.RemoveAll(dir)
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
