// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// One tenant changes among many: how long a Sync takes, and how long until a
// follower has confirmed it after Sync returned.
func BenchmarkChangeOne(b *testing.B) {
	for _, n := range []int{1000, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			srv := startServer(b)
			w := startWriter(b, srv.connect("ca"), "c1")
			f := startFollower(b, srv.connect("gw1"))
			s := aState("c1", n)
			sees(b, f, "c1", syncNow(b, w, s).Generation)
			var took, seen []time.Duration
			for b.Loop() {
				s.Tenants[n/2].Generation++
				start := time.Now()
				gen := syncNow(b, w, s).Generation
				done := time.Now()
				for f.Views()["c1"].Ready.Generation != gen {
					<-f.Changed()
				}
				took, seen = append(took, done.Sub(start)), append(seen, time.Since(done))
			}
			quantiles(b, took, "sync")
			quantiles(b, seen, "seen")
		})
	}
}

// All tenants are new: the writer fills an empty bucket, a follower reads it.
func BenchmarkLoad(b *testing.B) {
	const n = 4000
	for b.Loop() {
		srv := startServer(b)
		w := startWriter(b, srv.connect("ca"), "c1")
		start := time.Now()
		gen := syncNow(b, w, aState("c1", n)).Generation
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms-fill")
		conn := srv.connect("gw1")
		start = time.Now()
		sees(b, startFollower(b, conn), "c1", gen)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms-read")
	}
}

func BenchmarkAudit1000(b *testing.B) {
	srv := startServer(b)
	conn := srv.connect("gw1")
	a := startAudit(b, conn, b.TempDir(), 0)
	allPublished(b, a)
	events := make([]Event, 1000)
	for i := range events {
		events[i] = Event{Cluster: "c1", Kind: "tenant", Subject: fmt.Sprint(i), Data: map[string]string{"egressIP": "192.0.2.1"}}
	}
	for b.Loop() {
		if err := a.EmitAll(events); err != nil {
			b.Fatal(err)
		}
		allPublished(b, a)
	}
}

// BenchmarkEmit is the cost of one event that is on disk when Emit returns.
func BenchmarkEmit(b *testing.B) {
	srv := startServer(b)
	a := startAudit(b, srv.connect("gw1"), b.TempDir(), 0)
	for b.Loop() {
		if err := a.Emit(Event{Cluster: "c1", Kind: "tenant", Subject: "x"}); err != nil {
			b.Fatal(err)
		}
	}
}

func quantiles(b *testing.B, d []time.Duration, what string) {
	slices.Sort(d)
	ms := func(q float64) float64 { return float64(d[int(q*float64(len(d)-1))].Microseconds()) / 1000 }
	b.ReportMetric(ms(0.5), "ms-"+what+"-p50")
	b.ReportMetric(ms(0.99), "ms-"+what+"-p99")
}
