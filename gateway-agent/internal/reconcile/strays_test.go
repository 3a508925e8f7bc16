// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// TestStraysTurnTheTenantNotProgrammed follows one from the kernel's count to
// the status that the cluster reads, and back.
func TestStraysTurnTheTenantNotProgrammed(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed(), node("n1", 0))
	b.mustPass()
	var list []plan.Stray
	var announced []plan.Addr
	changed := 0
	s := &Strays{
		Read: func(context.Context) ([]plan.Stray, error) { return list, nil },
		Numbers: func(_ context.Context, pods map[netip.Addr]bool) (map[netip.Addr]int, error) {
			out := map[netip.Addr]int{}
			if known := netip.MustParseAddr("10.128.0.11"); pods[known] {
				out[known] = 2
			}
			return out, nil
		},
		Announce: func(a plan.Addr) { announced = append(announced, a) },
		Snapshot: b.loop.Snapshot, Changed: func() { changed++ }, Log: slog.New(slog.DiscardHandler),
	}
	look := func(want int, pods ...plan.Stray) {
		t.Helper()
		list = pods
		if err := s.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if changed != want {
			t.Errorf("%d changes, want %d", changed, want)
		}
		b.trouble = s.Problems()
		b.mustPass()
	}
	pod := func(last string, number int, packets uint64) plan.Stray {
		return plan.Stray{Pod: netip.MustParseAddr("10.128." + last), Number: number, Packets: packets}
	}
	verdict := func(name, want string) {
		t.Helper()
		st := b.loop.Snapshot().Statuses[Ref{"c1", name}]
		if got := st.Reason; got != want || st.Programmed != (want == "") {
			t.Errorf("%s: programmed %t, reason %q (%s), want %q", name, st.Programmed, got, st.Message, want)
		}
		if want != "" && !strings.Contains(st.Message, "node n1") {
			t.Errorf("%s: %q does not name the node", name, st.Message)
		}
	}
	look(0)
	look(1, pod("0.10", 1, 1))
	verdict("blue", ReasonStale)
	verdict("red", "")
	look(1, pod("0.10", 1, 9), pod("0.12", 1, 3), pod("99.9", 0, 1)) // more of the same, and of no node
	look(2, pod("0.11", 0, 1), pod("0.13", 0, 1))                    // a connection of .11 tells; .13 has none
	verdict("blue", "")
	verdict("red", ReasonStale)
	if p := s.Problems(); len(p) != 2 || p[0].Node != "n1" || p[0].Tenant != "" {
		t.Errorf("problems: %+v", p)
	}
	// Only what had no mark was refused, and of that only .11 has a tenant.
	refused := func(want uint64) {
		t.Helper()
		if got := s.View().Refused; len(got) != 1 || got[Ref{"c1", "red"}] != want {
			t.Errorf("refused: %v, want %d of red", got, want)
		}
	}
	refused(1)
	look(2, pod("0.11", 0, 5), pod("0.13", 0, 9), pod("0.11", 2, 7))
	refused(5)
	if lines := s.View().Lines; len(lines) != 2 || lines[1].Tenant != (Ref{"c1", "red"}) || lines[1].Packets != 12 {
		t.Errorf("lines: %+v", lines)
	}
	look(2, pod("0.11", 0, 2), pod("0.13", 0, 9)) // it had been forgotten
	refused(7)
	announced = announced[:3]
	if len(announced) != 3 || announced[0].Dev != "eg001" || announced[2].Dev != "eg002" {
		t.Errorf("announced again: %v", announced)
	}
	look(3)
	verdict("red", "")
}
