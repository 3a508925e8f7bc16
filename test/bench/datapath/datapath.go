// SPDX-License-Identifier: Apache-2.0

// Package datapath measures what the rules of a gateway cost a packet. In one
// run, gateways stand side by side between the same two switches, with the same
// number of links and addresses: one that gateway-agent programmed, one with
// the linear rules of the first design, and one that forwards without rules.
// One thread sends and receives on one processor, and alternates between a
// gateway and the plain one every 50 ms. What each carried is divided by the
// processor's time, and the two quotients by each other: so the figures stand,
// whatever else the machine does.
//
// The processor also carries sender, receiver and the two switches. A ratio
// says what the rules cost of the whole way, not of the gateway alone.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// The rules that are compared.
const (
	Ours   = "ours"
	Linear = "linear"
	plain  = "plain"
)

// The metrics.
const (
	Established = "established" // 64-byte UDP packets of established flows, both directions
	NewUDP      = "new_udp"     // UDP packets that each begin a flow
	TCP         = "tcp"         // connections: open, one byte, close
	Bulk        = "bulk"        // bits of one TCP stream
)

// Metrics lists them in the order in which they are shown.
func Metrics() []string { return []string{Established, NewUDP, TCP, Bulk} }

// Aims are the ratios that our rules should reach with MaxTenants.
func Aims() map[string]float64 {
	return map[string]float64{Established: 0.77, NewUDP: 0.65, TCP: 0.88, Bulk: 0.95}
}

// Check says which of rules and metrics is unknown.
func Check(rules, metrics []string) error {
	for _, r := range rules {
		if r != Ours && r != Linear && r != Unguarded {
			return fmt.Errorf("unknown rules %q", r)
		}
	}
	for _, m := range metrics {
		if !slices.Contains(Metrics(), m) {
			return fmt.Errorf("unknown metric %q", m)
		}
	}
	return nil
}

// Row is a result. Rate is per second of processor time, through the gateway
// under test; Ratio is that divided by the plain gateway's in the same round.
type Row struct {
	Rules   string  `json:"rules"`
	Tenants int     `json:"tenants"`
	Metric  string  `json:"metric"`
	Ratio   float64 `json:"ratio"`
	Rate    float64 `json:"rate"`
}

// Options of Run.
type Options struct {
	Tenants []int // each 1 to MaxTenants
	Rules   []string
	Metrics []string
	Rounds  int    // the median of so many is taken
	Backend string // of iptables: "nft" or "legacy"; the machine's if empty
	// Families are those of each tenant: one for Run, IPv4 first.
	Families []tenant.Family
	Agent    string // the gateway-agent binary
	Dir      string // for the agents' state and logs
	Log      io.Writer
}

// Backend says which iptables Options.Backend stands for, with its version: "1.8.9 (nf_tables)".
func Backend(ctx context.Context, backend string) (string, error) {
	program := iptables(tenant.IPv4, backend)
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", program, err)
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(out)), " v")
	return version, nil
}

// iptables names the program for a family: that of a backend, or the machine's.
func iptables(f tenant.Family, backend string) string {
	program := "iptables"
	if f == tenant.IPv6 {
		program = "ip6tables"
	}
	if backend != "" {
		program += "-" + backend
	}
	return program
}

// Run measures. It needs root, and removes all that it made.
func Run(ctx context.Context, o Options) ([]Row, error) {
	var rows []Row
	for i, n := range o.Tenants {
		more, err := runOne(ctx, o, i, n)
		if err != nil {
			return nil, fmt.Errorf("%d tenants: %w", n, err)
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func runOne(ctx context.Context, o Options, i, tenants int) (rows []Row, err error) {
	fmt.Fprintf(o.Log, "datapath: %d tenants: building\n", tenants)
	t, err := build(ctx, fmt.Sprintf("egwdp%d-%d", os.Getpid(), i), o.Families, tenants)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	if err := t.programOurs(ctx, o.Agent, filepath.Join(o.Dir, fmt.Sprint(tenants)), o.Backend); err != nil {
		return nil, err
	}
	for _, name := range []string{Linear, plain} {
		if err := t.linksAndAddresses(ctx, t.gateway(name)); err != nil {
			return nil, err
		}
	}
	if err := t.linearRules(ctx, t.gateway(Linear), o.Backend); err != nil {
		return nil, err
	}
	b, err := t.bench(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	for _, rules := range inOrder(o.Rules) {
		if rules == Unguarded {
			if err := t.unguard(ctx, o.Backend); err != nil {
				return nil, err
			}
		}
		for _, metric := range o.Metrics {
			row, err := b.measure(ctx, rules, metric)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", rules, metric, err)
			}
			fmt.Fprintf(o.Log, "datapath: %d tenants, %s, %s: %.2f of plain forwarding\n", tenants, rules, metric, row.Ratio)
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// bench measures on a topology.
type bench struct {
	t        *topology
	rounds   int
	worker   *worker
	clock    clock
	ends     ends
	listener int
}

func (t *topology) bench(o Options) (*bench, error) {
	cpu := runtime.NumCPU() - 1 // interrupts favour the first
	c, err := newClock(cpu)
	if err != nil {
		return nil, err
	}
	b := &bench{t: t, rounds: o.Rounds, clock: c}
	if b.ends, err = t.open(); err != nil {
		return nil, err
	}
	if b.listener, err = t.listen(); err != nil {
		return nil, errors.Join(err, b.ends.close())
	}
	if b.worker, err = startWorker(t.node, cpu); err != nil {
		return nil, errors.Join(err, b.ends.close(), os.NewFile(uintptr(b.listener), "listener").Close())
	}
	return b, nil
}

func (b *bench) close() error {
	b.worker.stop()
	return errors.Join(b.ends.close(), os.NewFile(uintptr(b.listener), "listener").Close())
}

func (b *bench) measure(ctx context.Context, rules, metric string) (Row, error) {
	row := Row{Rules: rules, Tenants: b.t.tenants, Metric: metric}
	p := pair{b.t.gateway(rules), b.t.gateway(plain)}
	l, err := b.load(metric, p)
	if err != nil {
		return row, err
	}
	if c, ok := l.(*stream); ok {
		defer c.close()
	}
	var ratios, rates []float64
	// The first round warms caches and tables, and is not counted.
	for i := range b.rounds + 1 {
		if metric == NewUDP || metric == TCP {
			if err := p[0].forget(ctx); err != nil {
				return row, err
			}
		}
		var ratio, rate float64
		if err := b.worker.do(func() (err error) { ratio, rate, err = round(b.clock, l); return err }); err != nil {
			return row, err
		}
		if err := ctx.Err(); err != nil {
			return row, err
		}
		if i > 0 {
			ratios, rates = append(ratios, ratio), append(rates, rate)
		}
	}
	row.Ratio, row.Rate = median(ratios), median(rates)
	return row, nil
}

// load prepares a kind of traffic.
func (b *bench) load(metric string, p pair) (load, error) {
	switch metric {
	case Established:
		l := &established{ends: b.ends, pair: p, tenants: b.t.tenants}
		return l, b.worker.do(l.establish)
	case NewUDP:
		return &newUDP{ends: b.ends, pair: p, tenants: b.t.tenants}, nil
	case TCP:
		return &connections{listener: b.listener, pair: p}, nil
	}
	var s *stream
	err := b.worker.do(func() (err error) { s, err = openStreams(b.listener, p); return err })
	return s, err
}
