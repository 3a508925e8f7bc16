// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

type fakeCounts struct {
	usage Usage
	lost  LostFlows
	err   error
	looks int
	takes time.Duration
}

func (f *fakeCounts) Usage(_ context.Context, _ uint32, full int) (Usage, error) {
	f.looks++
	time.Sleep(f.takes) // the bubble's time
	out := f.usage
	out.Full = map[PortTarget]int{}
	for t, n := range f.usage.Full {
		if n >= full {
			out.Full[t] = n
		}
	}
	return out, f.err
}

// Count counts all entries, the connections to the targets, or as many as the
// marks use.
func (f *fakeCounts) Count(context.Context) (int, error) {
	n := f.usage.Entries
	for _, used := range f.usage.Full {
		n += used
	}
	for _, use := range f.usage.Marks {
		n = max(n, use.Used)
	}
	return n, f.err
}

func (f *fakeCounts) Lost(context.Context) (LostFlows, error) { return f.lost, nil }

// portsBench has blue (number 1, .113) and red (number 2, .114), and targets
// with 1000 ports.
type portsBench struct {
	*PortWatch
	*fakeCounts
	changes int
}

func newPortsBench() *portsBench {
	entry := func(n int, ip string) Entry {
		return Entry{Number: n, Record: tenant.Tenant{EgressIPs: []netip.Addr{netip.MustParseAddr(ip)}}}
	}
	snap := &Snapshot{Addresses: []netip.Addr{netip.MustParseAddr("192.168.99.12")}, Memory: Memory{Clusters: map[string]Cluster{
		"c1": {Tenants: map[string]Entry{"blue": entry(1, "192.168.55.113"), "red": entry(2, "192.168.55.114")}}}}}
	b := &portsBench{fakeCounts: &fakeCounts{}}
	b.PortWatch = &PortWatch{
		Flows: b.fakeCounts, MarkMask: 0xfff00000, Ports: 1000, Clock: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Snapshot: func() *Snapshot { return snap }, Changed: func() { b.changes++ },
	}
	return b
}

func towards(egress string) PortTarget {
	return PortTarget{Protocol: 17, Destination: netip.MustParseAddrPort("203.0.113.10:53"), Egress: netip.MustParseAddr(egress)}
}

// look sets how many ports are used from each address, and looks.
func (b *portsBench) look(t *testing.T, used map[string]int) []string {
	t.Helper()
	b.usage = Usage{Marks: map[uint32]PortUse{}, Full: map[PortTarget]int{}}
	for egress, n := range used {
		b.usage.Full[towards(egress)] = n
		for mark, ip := range map[uint32]string{0x100000: "192.168.55.113", 0x200000: "192.168.55.114"} {
			if ip == egress {
				b.usage.Marks[mark] = PortUse{Connections: n, Used: n, Busiest: towards(egress)}
			}
		}
	}
	if _, err := b.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range b.View().Problems {
		if !p.Warning {
			t.Errorf("not a warning: %+v", p)
		}
		out = append(out, p.Tenant+" "+p.Reason)
	}
	return out
}

func TestPortLevels(t *testing.T) {
	b := newPortsBench()
	const blue, red, own = "192.168.55.113", "192.168.55.114", "192.168.99.12"
	near, over := "blue "+ReasonPortsNearlyExhausted, "blue "+ReasonPortsExhausted
	for i, step := range []struct {
		used    map[string]int
		want    []string
		changes int
	}{
		{map[string]int{blue: 799}, nil, 0},
		{map[string]int{blue: 800}, []string{near}, 1},
		{map[string]int{blue: 900}, []string{near}, 1}, // the words do not change with each connection
		{map[string]int{blue: 950}, []string{over}, 2},
		{map[string]int{blue: 851}, []string{over}, 2}, // and do not flicker
		{map[string]int{blue: 849, red: 810}, []string{near, "red " + ReasonPortsNearlyExhausted}, 3},
		{map[string]int{blue: 701}, []string{near}, 4},
		{map[string]int{blue: 699}, nil, 5},
		{map[string]int{own: 990}, []string{" " + ReasonPortsExhausted}, 6},
		{map[string]int{"192.168.55.199": 990}, nil, 7}, // whose it was is unknown
	} {
		if d := cmp.Diff(step.want, b.look(t, step.used)); d != "" {
			t.Errorf("step %d: %s", i, d)
		}
		if b.changes != step.changes {
			t.Errorf("step %d: %d changes were told, want %d", i, b.changes, step.changes)
		}
	}
	if use := b.View().Tenants[Ref{"c1", "blue"}]; use.Used != 0 || len(b.View().Tenants) != 2 {
		t.Errorf("tenants: %+v", b.View().Tenants)
	}
}

func TestPortFailures(t *testing.T) {
	b := newPortsBench()
	const blue, red = "192.168.55.113", "192.168.55.114"
	for i, step := range []struct {
		used      map[string]int
		lost      uint64
		blue, red uint64
	}{
		{map[string]int{blue: 990}, 100, 0, 0}, // before the agent's time
		{map[string]int{blue: 990}, 107, 7, 0},
		{map[string]int{blue: 10}, 110, 10, 0},            // it was full before
		{map[string]int{blue: 10, red: 490}, 120, 10, 0},  // nobody is: a race
		{map[string]int{red: 501}, 121, 10, 1},            // a dense row
		{map[string]int{red: 501, blue: 820}, 122, 10, 2}, // red has failed just now
		{map[string]int{blue: 990, red: 990}, 127, 12, 5}, // in equal parts
		{map[string]int{blue: 990, red: 990}, 127, 12, 5}, // nothing new
		{map[string]int{blue: 990}, 4, 12, 5},             // counters of the kernel that began anew
		{map[string]int{blue: 990}, 5, 13, 5},             // and go on
		{map[string]int{}, 1_000_005, 1_000_013, 5},       // blue was full
		{map[string]int{}, 1_000_006, 1_000_013, 5},       // and is no more
		{map[string]int{red: 960}, 1_000_007, 1_000_013, 6},
	} {
		b.lost.NotInserted = step.lost
		b.look(t, step.used)
		failed := b.View().Failed
		if got, want := [2]uint64{failed[Ref{"c1", "blue"}], failed[Ref{"c1", "red"}]}, [2]uint64{step.blue, step.red}; got != want {
			t.Errorf("step %d: failed %v, want %v", i, got, want)
		}
	}
}

func TestPortWatchPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newPortsBench()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		looks := func(d time.Duration) int {
			before := b.looks
			time.Sleep(d)
			synctest.Wait()
			return b.looks - before
		}
		if n := looks(5 * time.Minute); n < 5 || n > 6 {
			t.Errorf("hardly any connections: %d looks at the table in five minutes", n)
		}
		more := *b.Snapshot()
		more.Memory = more.Memory.clone()
		more.Memory.Clusters["c1"].Tenants["green"] = Entry{Number: 3}
		b.PortWatch.Snapshot = func() *Snapshot { return &more }
		if n := looks(11 * time.Second); n != 1 || len(b.View().Tenants) != 3 {
			t.Errorf("one more tenant: %d looks at the table, of %d tenants", n, len(b.View().Tenants))
		}
		b.usage.Marks = map[uint32]PortUse{0x100000: {Used: 499}}
		b.lost.Dropped = 7
		if n := looks(11 * time.Second); n > 1 || b.View().Entries != 499 || b.View().Lost.Dropped != 7 {
			t.Errorf("%d looks at the table for too few connections to be watched; %+v", n, b.View())
		}
		b.usage.Marks = map[uint32]PortUse{0x100000: {Used: 500}}
		if n := looks(time.Minute); n < 6 || n > 7 {
			t.Errorf("enough connections for one target to be watched: %d looks in a minute", n)
		}
		b.usage.Marks = map[uint32]PortUse{0x100000: {Used: 501}}
		looks(11 * time.Second)
		if n := looks(time.Minute); n < 28 || n > 31 {
			t.Errorf("half of the ports in use: %d looks in a minute", n)
		}
		b.takes = 300 * time.Millisecond // a full table
		looks(7 * time.Second)
		if n := looks(time.Minute); n < 8 || n > 10 {
			t.Errorf("a full table, half of the ports in use: %d looks in a minute", n)
		}
		// As takes change, no look comes sooner than their share allows.
		b.usage.Marks, b.usage.Entries = nil, 250_000
		for i := range 20 {
			b.takes = time.Duration(300+17*i) * time.Millisecond
			for before := b.View(); b.View() == before; {
				looks(100 * time.Millisecond)
			}
			last := b.View()
			for b.View() == last {
				looks(100 * time.Millisecond)
			}
			if rest := b.View().At.Sub(last.At); last.Took != b.takes || rest < 100*last.Took {
				t.Fatalf("a look that took %s, and the next one after %s", last.Took, rest)
			}
		}
		b.takes = 300 * time.Millisecond
		looks(40 * time.Second)
		if n := looks(5 * time.Minute); n < 9 || n > 11 {
			t.Errorf("a full table: %d looks in five minutes", n)
		}
		b.err = errors.New("broken")
		looks(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWarningsDoNotFail: a tenant that is warned about is programmed, and says
// why it is warned about; a failure is never hidden by that.
func TestWarningsDoNotFail(t *testing.T) {
	warning := plan.Problem{Cluster: "c1", Tenant: "t", Warning: true, Reason: ReasonPortsExhausted, Message: "full"}
	failure := plan.Problem{Cluster: "c1", Tenant: "t", Reason: "AddressTaken", Message: "taken"}
	for _, c := range []struct {
		problems   []plan.Problem
		programmed bool
		reason     string
	}{
		{[]plan.Problem{warning}, true, ReasonPortsExhausted},
		{[]plan.Problem{warning, failure}, false, "AddressTaken"},
		{[]plan.Problem{failure, warning}, false, "AddressTaken"},
	} {
		l := NewLoop(Options{Clock: time.Now})
		l.memory = Memory{Clusters: map[string]Cluster{"c1": {Tenants: map[string]Entry{"t": {}}}}}
		st := l.statusesOf(l.memory.Refs(), false, result{}, c.problems, nil)[Ref{"c1", "t"}]
		if st.Programmed != c.programmed || st.Reason != c.reason {
			t.Errorf("%v: programmed %v, %s", c.problems, st.Programmed, st.Reason)
		}
	}
	if kindOf(warning) != EventPorts || kindOf(failure) != EventProblem {
		t.Error("kinds of events")
	}
}

// TestPortSpill: new connections of a full target take an address that has
// room, and come back when it has room again.
func TestPortSpill(t *testing.T) {
	const one, two, three = "192.168.55.113", "192.168.55.115", "192.168.55.116"
	b := newPortsBench()
	e := b.Snapshot().Memory.Clusters["c1"].Tenants["blue"]
	e.Record.EgressIPs = []netip.Addr{netip.MustParseAddr(one), netip.MustParseAddr("fd00::1"), netip.MustParseAddr(two), netip.MustParseAddr(three)}
	b.Snapshot().Memory.Clusters["c1"].Tenants["blue"] = e
	for i, step := range []struct {
		used map[string]int
		want string
	}{
		{map[string]int{one: 899}, ""},
		{map[string]int{one: 900}, one + ">" + two},
		{map[string]int{one: 600, two: 700}, one + ">" + two}, // as long as that has room enough
		{map[string]int{one: 990, two: 900}, one + ">" + three + " " + two + ">" + three},
		{map[string]int{one: 990, two: 900, three: 600}, one + ">" + three + " " + two + ">" + three},
		{map[string]int{one: 990, two: 990, three: 910}, ""}, // nobody has room
		{map[string]int{one: 990, two: 990, three: 499}, one + ">" + three + " " + two + ">" + three},
		{map[string]int{one: 499, two: 499}, ""},
		{map[string]int{"192.168.55.114": 999}, ""}, // red has one address only
	} {
		b.look(t, step.used)
		got := ""
		for _, s := range b.View().Spills {
			if s.Tenant != "c1/blue" || s.Protocol != 17 || s.Destination.String() != "203.0.113.10:53" {
				t.Errorf("step %d: %+v", i, s)
			}
			got += " " + s.From.String() + ">" + s.To.String()
		}
		if got = strings.TrimSpace(got); got != step.want {
			t.Errorf("step %d: spills %q, want %q", i, got, step.want)
		}
	}
}
