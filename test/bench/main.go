// SPDX-License-Identifier: Apache-2.0

// Command bench measures the agents in a lab and writes the figures to
// build/bench/<part>.json. Machines are noisy: where two figures compare, they
// come from the same run, and their ratio is given.
//
// Parts:
//
//	control      label to first translated packet; many tenants from an empty
//	             kernel; one more tenant among many; memory of the agents
//	datapath     what the rules cost packets and connections, beside plain
//	             forwarding and linear rules: table, JSON, plot
//	programming  4,000 tenants from an empty kernel; one more and one less; what
//	             the agent needs while nothing changes
//	idle         the last of these alone
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"egress-gateway.io/shared/tenant"
	"egress-gateway.io/test/bench/datapath"
	"egress-gateway.io/test/scenario"
)

func main() { os.Exit(run()) }

type options struct {
	root    string
	out     string
	samples int
	tenants int   // of control
	counts  []int // of datapath
	rules   []string
	metrics []string
	rounds  int
	backend string
	family  int // 4, 6, or 46 for both
	// families are what family says.
	families []tenant.Family
	idleFor  time.Duration // of idle
}

// choose returns what a part does, once its options are found to be right.
func (o *options) choose(part, tenants string) (func(context.Context) error, error) {
	defaults := map[string]string{"control": "1000", "datapath": "1,40,400,1000,4000", "programming": "4000", "idle": "4000"}
	if _, known := defaults[part]; !known {
		return nil, fmt.Errorf("unknown part %q", part)
	}
	for word := range strings.SplitSeq(cmp.Or(tenants, defaults[part]), ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 1 || n > datapath.MaxTenants {
			return nil, fmt.Errorf("tenants %q: want 1 to %d", word, datapath.MaxTenants)
		}
		o.counts = append(o.counts, n)
	}
	if o.samples < 1 || o.rounds < 1 {
		return nil, errors.New("samples and rounds must be 1 or more")
	}
	if o.backend != "" && o.backend != "nft" && o.backend != "legacy" {
		return nil, fmt.Errorf("unknown backend %q", o.backend)
	}
	o.families = map[int][]tenant.Family{4: {tenant.IPv4}, 6: {tenant.IPv6}, 46: tenant.Families()}[o.family]
	switch {
	case len(o.families) == 0:
		return nil, fmt.Errorf("unknown family %d", o.family)
	case part == "control" && o.family != 4, part == "datapath" && len(o.families) > 1:
		return nil, fmt.Errorf("part %s does not know family %d", part, o.family)
	}
	if part == "datapath" {
		return o.datapath, datapath.Check(o.rules, o.metrics)
	}
	if o.tenants = o.counts[0]; len(o.counts) > 1 {
		return nil, fmt.Errorf("part %s takes one number of tenants", part)
	}
	switch part {
	case "programming":
		return o.programming, nil
	case "idle":
		return o.idle, nil
	}
	return func(ctx context.Context) error { return measure(ctx, *o) }, nil
}

func run() int {
	var o options
	part := flag.String("part", "control", "what to measure: control, datapath, programming or idle")
	flag.StringVar(&o.root, "root", ".", "the checkout")
	flag.StringVar(&o.out, "out", "build/bench", "where the figures go")
	flag.IntVar(&o.samples, "samples", 100, "repetitions of what is given as p50 and p99")
	tenants := flag.String("tenants", "", "how many tenants, 1 to 4000: one number for control (default 1000), programming and idle (default 4000), a comma list for datapath (default 1,40,400,1000,4000)")
	rules := flag.String("rules", "ours,linear", "datapath: the rules to measure; unguarded is ours without its guards, which shows what is left to them")
	metrics := flag.String("metrics", strings.Join(datapath.Metrics(), ","), "datapath: what to measure")
	flag.IntVar(&o.rounds, "rounds", 5, "datapath: rounds of a second, of which the median counts")
	flag.DurationVar(&o.idleFor, "idle-for", 5*time.Minute, "idle: how long to measure")
	flag.StringVar(&o.backend, "backend", "", "datapath: the iptables of our rules and of the linear ones, nft or legacy (default: ours as the machine has it, linear nft)")
	flag.IntVar(&o.family, "family", 4, "datapath, programming and idle: the IP version of the tenants, 4 or 6; of programming and idle also 46, tenants with both")
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bench: needs root, because it makes network namespaces; run: sudo make bench")
		return 1
	}
	o.rules, o.metrics = strings.Split(*rules, ","), strings.Split(*metrics, ",")
	work, err := o.choose(*part, *tenants)
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v; see bench --help\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := work(ctx); err != nil {
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
