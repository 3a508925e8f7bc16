// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// result is what a run has found.
type result struct {
	verdict
	// WithoutGuards says that wrong packets are what the run had to see.
	WithoutGuards bool

	Seed   uint64
	Counts map[string]int
	Faults []string
	// Longest is the longest interruption of a UDP flow of a tenant that nobody
	// touched, without those that a hand at the gateway brings about by itself,
	// which are in Excused.
	Longest time.Duration
	Excused map[string]time.Duration
	// Lost and Sent are packets of these flows; LostByAgents those of Lost that no
	// such hand explains. SlowestTCP is the longest time that one of their
	// connections kept an answer waiting.
	Lost, LostByAgents, Sent int
	SlowestTCP               time.Duration
}

func (r result) good() bool { return (r.Wrong > 0) == r.WithoutGuards && len(r.Faults) == 0 }

func (r result) line() string {
	return fmt.Sprintf("chaos: %d packets checked, %d wrong, longest interruption %d ms, seed %d", r.Checked, r.Wrong, r.Longest.Milliseconds(), r.Seed)
}

// conclude holds all packets against the truth.
func (w *world) conclude(ctx context.Context, records *recorder, captured lab.Result, flows []longFlow) (result, error) {
	limited, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	seen, told, err := readAudit(limited, w.World)
	if err != nil {
		return result{}, err
	}
	h := compile(append(seen, w.watcher.allocations()...), told)
	r := result{verdict: judge(records, h, memberName), WithoutGuards: w.opts.WithoutGuards, Seed: w.opts.Seed, Counts: w.counts, Excused: map[string]time.Duration{}}
	if captured.KernelDrops > 0 {
		w.fault("the capture missed %d packets", captured.KernelDrops)
	}
	// Without traffic of every tenant, nothing wrong would prove nothing.
	for _, m := range w.members {
		for _, is6 := range []bool{false, true} {
			if r.Right[voice{m.name, is6}] == 0 {
				w.fault("no packet of %s was seen with an address of its own (IPv6: %v)", m.name, is6)
			}
		}
	}
	for _, f := range flows {
		w.judgeFlow(f, &r)
	}
	r.Faults = w.faults
	return r, nil
}

func (w *world) judgeFlow(f longFlow, r *result) {
	if f.result.Err != nil {
		w.fault("%s ended: %v", f.name, f.result.Err)
	}
	if f.tcp {
		r.SlowestTCP = max(r.SlowestTCP, f.result.Slowest)
		return
	}
	r.Sent += f.result.Sent
	r.Lost += f.result.Lost()
	for _, o := range f.result.Outages {
		if why := w.excused(o); why != "" {
			r.Excused[why] = max(r.Excused[why], o.Duration())
			continue
		}
		r.LostByAgents += o.Lost
		r.Longest = max(r.Longest, o.Duration())
		w.say("%s was interrupted at %.1f s for %s", f.name, o.From.Sub(w.began).Seconds(), o.Duration().Round(time.Millisecond))
	}
}

func (w *world) excused(o scenario.Outage) string {
	for _, e := range w.excuses {
		if o.From.Before(e.to) && o.To.After(e.from) {
			return e.why
		}
	}
	return ""
}

// print tells what was done and found, but for the last line.
func (r result) print(out io.Writer) {
	fmt.Fprintln(out, "\ndisturbances:")
	for _, what := range slices.Sorted(maps.Keys(r.Counts)) {
		fmt.Fprintf(out, "  %5d  %s\n", r.Counts[what], what)
	}
	fmt.Fprintf(out, "long flows of tenants that nobody touched: %d of %d UDP packets lost by the agents' own actions (aim 0), %d all told; slowest answer over TCP %s\n",
		r.LostByAgents, r.Sent, r.Lost, r.SlowestTCP.Round(time.Millisecond))
	for _, why := range slices.Sorted(maps.Keys(r.Excused)) {
		fmt.Fprintf(out, "  interrupted for up to %s by a hand that deleted %s: not counted\n", r.Excused[why].Round(time.Millisecond), why)
	}
	fmt.Fprintf(out, "packets of the gateway VM itself, from its own address or one that a tenant held then: %d\n", r.Own)
	if r.WithoutGuards {
		fmt.Fprintln(out, "the guards were taken away: wrong packets show what they are needed for")
	}
	for _, why := range slices.Sorted(maps.Keys(r.Reasons)) {
		fmt.Fprintf(out, "WRONG: %d packets: %s\n", r.Reasons[why], why)
	}
	for _, e := range r.Examples {
		fmt.Fprintln(out, "  "+e)
	}
	for _, f := range r.Faults {
		fmt.Fprintln(out, "FAILED:", f)
	}
}

func (r result) err() error {
	if r.good() {
		return nil
	}
	lines := []string{r.line()}
	if r.WithoutGuards && r.Wrong == 0 {
		lines = append(lines, "no wrong packet without guards: this test would not see one with them")
	}
	return errors.New(strings.Join(append(lines, r.Faults...), "\n"))
}

func join(list []string) string { return strings.Join(list, ",") }

// nth is the address that is n behind base.
func nth(base string, n int) string {
	a := netip.MustParseAddr(base)
	for range n {
		a = a.Next()
	}
	return a.String()
}

func lines(s string) int { return len(strings.Split(strings.TrimSpace(s), "\n")) }
