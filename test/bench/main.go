// SPDX-License-Identifier: Apache-2.0

// Command bench measures the agents in a lab and writes the figures to
// build/bench/<part>.json. Machines are noisy: where two figures compare, they
// come from the same run, and their ratio is given.
//
// Parts:
//
//	control  label to first translated packet; many tenants from an empty
//	         kernel; one more tenant among many; memory of the agents
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"egress-gateway.io/test/scenario"
)

func main() { os.Exit(run()) }

type options struct {
	root    string
	out     string
	samples int
	tenants int
}

func run() int {
	var o options
	part := flag.String("part", "control", "what to measure: control")
	flag.StringVar(&o.root, "root", ".", "the checkout")
	flag.StringVar(&o.out, "out", "build/bench", "where the figures go")
	flag.IntVar(&o.samples, "samples", 100, "repetitions of what is given as p50 and p99")
	flag.IntVar(&o.tenants, "tenants", 1000, "how many tenants are many; 1 to 4000")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: needs root, because it makes network namespaces; run: sudo make bench")
		return 1
	}
	if *part != "control" || o.samples < 1 || o.tenants < 1 || o.tenants > 4000 {
		fmt.Fprintf(os.Stderr, "bench: unknown part %q, or samples or tenants out of range; see bench --help\n", *part)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// Figure is one row of the result.
type Figure struct {
	Name    string  `json:"name"`
	Tenants int     `json:"tenants"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	// Aim is what the figure should stay below; 0 if there is none.
	Aim float64 `json:"aim,omitempty"`
}

func measure(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "egress-gateway-bench-")
	if err != nil {
		return err
	}
	w, err := scenario.NewWorld(ctx, scenario.WorldOptions{
		Name: fmt.Sprintf("bench%d", os.Getpid()), Dir: dir, BinDir: filepath.Join(o.root, "build/bin"), Root: o.root, Log: os.Stderr,
	})
	if err != nil {
		return err
	}
	defer func() {
		if e := w.Down(); err == nil {
			err = e
		}
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintln(os.Stderr, "bench: logs are kept in", dir)
		}
	}()
	b := &bench{w: w, o: o}
	if err := b.control(ctx); err != nil {
		return err
	}
	return b.write("control.json")
}

func (b *bench) write(name string) error {
	if err := os.MkdirAll(b.o.out, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(b.figures, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(b.o.out, name)
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return err
	}
	tab := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tab, "FIGURE\tTENANTS\tVALUE\tAIM")
	for _, f := range b.figures {
		aim := ""
		if f.Aim > 0 {
			aim = fmt.Sprintf("< %g %s", f.Aim, f.Unit)
			if f.Value >= f.Aim {
				aim += "  MISSED"
			}
		}
		fmt.Fprintf(tab, "%s\t%d\t%.4g %s\t%s\n", f.Name, f.Tenants, f.Value, f.Unit, aim)
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	fmt.Println(strings.TrimSpace("written to " + path))
	return nil
}

func (b *bench) add(name string, tenants int, value float64, unit string, aim float64) {
	b.figures = append(b.figures, Figure{name, tenants, value, unit, aim})
	fmt.Fprintf(os.Stderr, "bench: %s, %d tenants: %.4g %s\n", name, tenants, value, unit)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
