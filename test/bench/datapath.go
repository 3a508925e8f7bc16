// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
		backend, err := datapath.Backend(ctx, o.backend)
		if err != nil {
			return err
		}
		now := time.Now()
		caption := fmt.Sprintf("%s, IPv%d, rules by iptables %s", now.Format(time.DateOnly), o.family, backend)
		return save(os.Stdout, rows, filepath.Join(o.out, "datapath"+o.suffix()), caption, now)
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
		for i, took := range p.FromEmpty {
			name := "all tenants from an empty kernel to the last one's first connection"
			if len(p.FromEmpty) > 1 {
				name += " over " + o.families[i].String()
			}
			b.add(name, n, took.Seconds(), "s", 4)
		}
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
