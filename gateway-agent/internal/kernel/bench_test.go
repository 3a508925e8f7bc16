// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// many is n tenants.
func (l *lab) many(n int) plan.Input {
	in := l.input()
	in.Tenants = nil
	for i := 1; i <= n; i++ {
		in.Tenants = append(in.Tenants, numbered(i, fmt.Sprintf("ns-%d", i),
			fmt.Sprintf("192.168.%d.%d", 100+i/250, i%250+1), fmt.Sprintf("192.168.%d.%d", 10+i/250, i%250+1)))
	}
	return in
}

// BenchmarkTenants prints what it takes to program n tenants from an empty
// kernel, to look at them, and to add, change and remove one more.
func BenchmarkTenants(b *testing.B) {
	for _, backend := range backends(b) {
		for _, n := range []int{1, 1000, 4000} {
			b.Run(fmt.Sprintf("%s/%d", backend, n), func(b *testing.B) {
				for b.Loop() {
					benchTenants(b, backend, n)
				}
			})
		}
	}
}

func benchTenants(b *testing.B, backend string, n int) {
	l := newLab(b, backend)
	in := l.many(min(n+1, plan.MaxNumber))
	all := in.Tenants
	timed := func(name string, f func()) {
		start := time.Now()
		f()
		d := time.Since(start)
		b.ReportMetric(float64(d.Microseconds())/1000, name+"-ms")
	}
	in.Tenants = all[:n]
	timed("plan", func() { plan.Diff(l.want(in), plan.State{}) })
	timed("empty-to-all", func() { l.apply(plan.Diff(l.want(in), l.observe())) })
	timed("observe", func() { l.observe() })
	timed("pass", func() {
		if steps := plan.Diff(l.want(in), l.observe()); len(steps) > 0 {
			b.Fatalf("a second pass is not empty:\n%s", text(steps[:min(len(steps), 5)]))
		}
	})
	in.Tenants = all
	timed("add-one", func() { l.apply(plan.Diff(l.want(in), l.observe())) })
	in.Tenants = append(append([]plan.Numbered{}, all[:n-1]...), all[n:]...)
	timed("remove-one", func() { l.apply(plan.Diff(l.want(in), l.observe())) })
	timed("cleanup", func() { l.apply(plan.Diff(plan.State{}, l.observe())) })
}

func (l *lab) want(in plan.Input) plan.State {
	l.t.Helper()
	want, problems := plan.Desired(in)
	if len(problems) > 0 {
		l.t.Fatalf("problems: %v", problems[0])
	}
	return want
}

// BenchmarkLook measures a look at 4,000 tenants that reads everything, and how
// much memory it takes.
func BenchmarkLook(b *testing.B) {
	l := newLab(b, "iptables-nft")
	l.serve(l.many(4000))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		l.gw.Run("nft add table inet foreign && nft delete table inet foreign") // else the rules are known
		b.StartTimer()
		l.gw.Do(func() {
			if _, err := l.kernel.Look(b.Context(), true); err != nil {
				b.Error(err)
			}
		})
	}
}

// BenchmarkScrape measures what the counters of 1,000 tenants cost.
func BenchmarkScrape(b *testing.B) {
	l := newLab(b, "iptables-nft")
	l.serve(l.many(1000))
	used := func() (sum time.Duration) {
		for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
			var u unix.Rusage
			if err := unix.Getrusage(who, &u); err != nil {
				b.Fatal(err)
			}
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		return sum
	}
	began := used()
	b.ResetTimer()
	for b.Loop() {
		l.gw.Do(func() {
			c, err := l.kernel.Counters(b.Context())
			if err != nil || len(c.Tenants) != 1000 || len(c.Refused) == 0 || len(c.Guards) == 0 {
				b.Errorf("%d tenants, %v", len(c.Tenants), err)
			}
		})
	}
	b.ReportMetric(float64((used()-began).Milliseconds())/float64(b.N), "cpu-ms/op")
}
