// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

func TestLoopFromNothing(t *testing.T) {
	b := newBench(t)
	b.mustPass()
	if len(b.kernel.state.Guard.Rules) == 0 || len(b.kernel.state.Sysctls) == 0 {
		t.Error("guards and sysctls must be set before anything is known")
	}
	if b.loop.Snapshot().Known {
		t.Error("ready without any state")
	}
	if _, err := os.Stat(filepath.Join(b.dir, stateName)); err == nil {
		t.Error("an empty disk copy was written: the next start would take it for knowledge")
	}
	b.show(1, blueAndRed(), node("n1", 0))
	b.mustPass()
	b.want("addresses", bothAddrs, b.kernel.addrs())
	b.want("routes", []string{"10.128.0.0/23 via 192.168.99.20"}, b.kernel.routes())
	b.want("programmed", []string{"c1/blue programmed/uid-blue/1", "c1/red programmed/uid-red/1"}, b.audit.told(EventProgrammed))
	b.want("status", []string{"true uid-blue/1", "true uid-red/1"}, []string{b.status("blue"), b.status("red")})
	if b.swept != 1 || len(b.announcer.announced) != 4 || len(b.announcer.kept) != 4 {
		t.Errorf("swept %d, announced %v, kept %v", b.swept, b.announcer.announced, b.announcer.kept)
	}
	b.settled()
	b.want("nothing is told twice", []string{"c1/blue programmed/uid-blue/1", "c1/red programmed/uid-red/1"}, b.audit.told(EventProgrammed))
}

func TestLoopRemoval(t *testing.T) {
	b := newBench(t)
	both := blueAndRed()
	b.show(1, both, node("n1", 0))
	b.mustPass()
	b.show(2, with(both, func(m map[string]tenant.Tenant) { m["red"] = tombstone(both["red"]) }), node("n1", 0))
	b.mustPass()
	b.want("addresses", blueAddrs, b.kernel.addrs())
	b.want("links", []string{"eg001"}, b.kernel.links())
	b.want("connections", []string{"mark 0x200000", "egress 192.168.55.14 but 0x0"}, b.flows.calls)
	b.want("removed", []string{"c1/red removed/uid-red/1"}, b.audit.told(EventRemoved))
	if len(b.audit.told(EventFlush)) != 2 {
		t.Errorf("flushes told: %v", b.audit.told(EventFlush))
	}
	b.settled()
}

// TestGuardIsPutBackDuringPass: somebody empties the exit guard while a tenant is
// removed and another comes, after any number of steps. The guard comes back
// before any other step, in the same pass, and all else as if nothing had been.
func TestGuardIsPutBackDuringPass(t *testing.T) {
	for at, more := 0, true; more; at++ {
		b := newBench(t)
		both := blueAndRed()
		b.show(1, both, node("n1", 0))
		b.mustPass()
		b.show(2, with(both, func(m map[string]tenant.Tenant) {
			m["red"], m["t07"] = tombstone(both["red"]), numberedRecord(7, 7, 2)
		}), node("n1", 0))
		began := len(b.kernel.steps)
		var rest []string // what is done from then on
		b.kernel.handAfter, b.kernel.hand = at, func(s *plan.State) { began, s.Guard.Rules = len(b.kernel.steps), s.Guard.Rules[1:] }
		b.mustPass()
		if more = b.kernel.hand == nil; !more {
			break // all was done before
		}
		if rest = b.kernel.steps[began:]; len(rest) == 0 || rest[0] != (plan.SetGuard{}).String() {
			t.Errorf("after %d steps the guard was emptied, and this was done: %q", at, rest)
		}
		b.want("removed", []string{"c1/red removed/uid-red/1"}, b.audit.told(EventRemoved))
		b.want("links", []string{"eg001", "eg003"}, b.kernel.links())
		b.settled()
	}
}

// TestGuardIsFoughtOver: who empties the guard again and again does not keep a
// pass from ending.
func TestGuardIsFoughtOver(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed(), node("n1", 0))
	fights := 0
	var hand func(s *plan.State)
	hand = func(s *plan.State) {
		s.Guard.Rules = nil
		fights++
		b.kernel.handAfter, b.kernel.hand = 1, hand
	}
	b.kernel.handAfter, b.kernel.hand = 1, hand
	if _, ok := b.pass(); ok || fights != maxRuns {
		t.Errorf("the guard was emptied %d times", fights)
	}
	b.kernel.hand = nil
	b.mustPass()
	b.settled()
}

func TestLoopRebootWithoutNATS(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed(), node("n1", 0))
	b.mustPass()
	b.kernel = newFakeKernel() // a reboot: the kernel is empty
	b.start()
	b.mustPass()
	b.want("addresses", bothAddrs, b.kernel.addrs())
	b.want("status", []string{"true uid-blue/1"}, []string{b.status("blue")})
	if !b.loop.Snapshot().Known {
		t.Error("not ready although the disk copy is applied")
	}
}

// TestLoopLostDisk: without a disk copy what runs is adopted, and goes on with
// the same numbers; nothing is torn down before a view is confirmed.
func TestLoopLostDisk(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"corrupt": func(path string) error { return os.WriteFile(path, []byte("{\"schema\":1,"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			tenants := blueAndRed()
			rainbow := record("rainbow", 15)
			rainbow.EgressIPs = append(rainbow.EgressIPs, record("x", 99).EgressIPs[0], record("x", 16).EgressIPs[0])
			tenants["rainbow"] = rainbow
			b.show(1, tenants, node("n1", 0), node("n2", 1))
			b.mustPass()
			if err := damage(filepath.Join(b.dir, stateName)); err != nil {
				t.Fatal(err)
			}
			b.start()
			b.want("steps without a view", nil, b.mustPass())
			if got := len(b.loop.Snapshot().Problems) > 0; got != (name == "corrupt") {
				t.Errorf("problems: %v", b.loop.Snapshot().Problems)
			}
			b.show(2, tenants, node("n1", 0), node("n2", 1))
			b.want("steps after the same view", nil, b.mustPass())
			if len(b.loop.Snapshot().Problems) > 0 {
				t.Errorf("problems: %v", b.loop.Snapshot().Problems)
			}
			b.show(3, with(tenants, func(m map[string]tenant.Tenant) { delete(m, "red") }), node("n2", 1))
			b.mustPass()
			b.want("links", []string{"eg001", "eg002"}, b.kernel.links()) // blue, rainbow
			b.want("routes", []string{"10.128.2.0/23 via 192.168.99.21"}, b.kernel.routes())
			b.settled()
		})
	}
}

func TestLoopOneTenantFailsTheOthersGoOn(t *testing.T) {
	b := newBench(t)
	b.kernel.failing = "192.168.99.13/32 dev eg001" // blue's gateway IP
	b.show(1, blueAndRed())
	if _, ok := b.pass(); ok {
		t.Error("the pass counts as good")
	}
	b.want("status", []string{"false uid-blue/1 StepFailed", "true uid-red/1"}, []string{b.status("blue"), b.status("red")})
	b.want("programmed", []string{"c1/red programmed/uid-red/1"}, b.audit.told(EventProgrammed))
	b.kernel.failing = ""
	b.mustPass()
	b.want("addresses", bothAddrs, b.kernel.addrs())
	b.want("status", []string{"true uid-blue/1"}, []string{b.status("blue")})
	b.settled()
}

func TestLoopHostFails(t *testing.T) {
	b := newBench(t)
	b.kernel.failing = "nft add table"
	b.show(1, blueAndRed())
	if _, ok := b.pass(); ok {
		t.Error("the pass counts as good")
	}
	b.want("without its guard nothing is served", nil, b.kernel.addrs())
	b.want("status", []string{"false uid-blue/1 HostStepFailed"}, []string{b.status("blue")})
	b.kernel.failing = ""
	b.mustPass()
	b.want("addresses", bothAddrs, b.kernel.addrs())
}

func TestLoopRouteFails(t *testing.T) {
	b := newBench(t)
	b.kernel.failing = "10.128.0.0/23"
	b.show(1, blueAndRed(), node("n1", 0), node("n2", 1))
	if _, ok := b.pass(); ok {
		t.Error("the pass counts as good")
	}
	b.want("addresses", bothAddrs, b.kernel.addrs())
	b.want("routes", []string{"10.128.2.0/23 via 192.168.99.21"}, b.kernel.routes())
	b.want("status", []string{"true uid-blue/1"}, []string{b.status("blue")})
}

func TestLoopKernelUnreadable(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed())
	b.mustPass()
	b.kernel.err = errInjected
	b.show(2, with(blueAndRed(), func(m map[string]tenant.Tenant) { g := record("green", 15); m["green"] = g }))
	if _, ok := b.pass(); ok {
		t.Error("the pass counts as good")
	}
	b.want("known tenants stay as they were", []string{"true uid-blue/1"}, []string{b.status("blue")})
	b.kernel.err = nil
	b.mustPass()
	b.want("status", []string{"true uid-green/1"}, []string{b.status("green")})
}

func TestLoopInternalNICLosesItsAddress(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed(), node("n1", 0))
	b.mustPass()
	onLink := b.kernel.host.OnLink
	for _, now := range [][]netip.Prefix{nil, {netip.MustParsePrefix("169.254.0.0/16")}} {
		b.kernel.host.OnLink = now
		b.want("nothing is torn down", nil, b.mustPass())
	}
	if len(b.loop.Snapshot().Problems) != 1 {
		t.Errorf("problems: %v", b.loop.Snapshot().Problems)
	}
	b.kernel.host.OnLink = onLink
	b.settled()
	if len(b.loop.Snapshot().Problems) != 0 {
		t.Errorf("problems: %v", b.loop.Snapshot().Problems)
	}
}

func TestLoopDiskFull(t *testing.T) {
	b := newBench(t)
	both := blueAndRed()
	b.show(1, without(both, "red"))
	b.mustPass()
	b.loop.Store.dir = filepath.Join(b.dir, "gone")
	b.show(2, both)
	delete(b.kernel.state.Addrs, plan.Addr{Dev: "enp7s0", IP: both["blue"].EgressIPs[0]}) // by hand
	if _, ok := b.pass(); ok {
		t.Error("the pass counts as good")
	}
	b.want("what runs is repaired, what is new waits for the disk", blueAddrs, b.kernel.addrs())
	b.want("status", []string{"true uid-blue/1"}, []string{b.status("blue")})
	b.loop.Store.dir = b.dir
	b.mustPass()
	b.want("addresses", bothAddrs, b.kernel.addrs())
}

func TestLoopHeldAndConfirmed(t *testing.T) {
	b := newBench(t)
	all := many(8)
	b.show(1, all, node("n1", 0))
	b.mustPass()
	b.show(2, nil)
	b.want("held tenants and their routes stay", nil, b.mustPass())
	if _, _, held := b.loop.Snapshot().Counts(); held != 8 || len(b.audit.told(EventHeld)) != 8 {
		t.Errorf("held %d, told %v", held, b.audit.told(EventHeld))
	}
	b.settled()
	if err := open(t, b.dir).RequestConfirm(b.loop.Snapshot().Memory); err != nil {
		t.Fatal(err)
	}
	if !b.loop.Store.ConfirmPending() {
		t.Fatal("no request is pending")
	}
	b.mustPass()
	b.want("links", nil, b.kernel.links())
	if b.loop.Store.ConfirmPending() || len(b.audit.told(EventRemoved)) != 8 {
		t.Errorf("request pending %v, removed %v", b.loop.Store.ConfirmPending(), b.audit.told(EventRemoved))
	}
}

func TestLoopProblemsAreToldOnce(t *testing.T) {
	b := newBench(t)
	b.trouble = []plan.Problem{{Cluster: "c1", Reason: "Bus", Message: "no heartbeat"}}
	b.mustPass()
	b.mustPass()
	if got := b.audit.told(EventProblem); len(got) != 1 {
		t.Errorf("told %v, want it once", got)
	}
	b.trouble = nil
	b.mustPass()
	b.trouble = []plan.Problem{{Cluster: "c1", Reason: "Bus", Message: "no heartbeat"}}
	b.mustPass()
	if got := b.audit.told(EventProblem); len(got) != 2 {
		t.Errorf("told %v, want it again when it came back", got)
	}
}

// TestLoopRun: it passes at once, on an event and after a failure, and ends
// with its context.
func TestLoopRun(t *testing.T) {
	b := newBench(t)
	passes := make(chan Pass, 100)
	b.loop.OnPass = func(p Pass) { passes <- p }
	b.kernel.failing = "192.168.99.13/32 dev eg001"
	b.show(1, blueAndRed())
	ctx, cancel := context.WithCancel(context.Background())
	changed, done := make(chan struct{}), make(chan error)
	go func() { done <- b.loop.Run(ctx, changed) }()
	next := func(what string) Pass {
		t.Helper()
		select {
		case p := <-passes:
			return p
		case <-time.After(10 * time.Second):
			t.Fatalf("no pass %s", what)
			return Pass{}
		}
	}
	if p := next("at the start"); p.Failed[FailedTenant]+p.Failed[FailedHost] != 1 {
		t.Errorf("first pass: %+v", p)
	}
	if p := next("after a failure"); p.Failed[FailedTenant]+p.Failed[FailedHost] != 1 {
		t.Errorf("retry: %+v", p)
	}
	changed <- struct{}{}
	next("on an event")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.want("a stop leaves the data path", []string{"eg001", "eg002"}, b.kernel.links())
}

// TestLoopTellsProgrammingOnce: a restart is no news, a reboot is.
func TestLoopTellsProgrammingOnce(t *testing.T) {
	b := newBench(t)
	b.show(1, map[string]tenant.Tenant{"blue": record("blue", 13)})
	b.mustPass()
	b.start()
	b.mustPass()
	want := []string{"c1/blue programmed/uid-blue/1"}
	b.want("after a restart", want, b.audit.told(EventProgrammed))
	b.kernel = newFakeKernel()
	b.start()
	b.mustPass()
	b.want("after a reboot", append(want, want...), b.audit.told(EventProgrammed))
}

func TestCleanup(t *testing.T) {
	b := newBench(t)
	b.show(1, blueAndRed(), node("n1", 0))
	b.mustPass()
	b.kernel.failing = "ip link delete eg001"
	if _, err := Cleanup(context.Background(), b.kernel, b.flows); err == nil {
		t.Error("a failure is not told")
	}
	b.kernel.failing = ""
	if _, err := Cleanup(context.Background(), b.kernel, b.flows); err != nil {
		t.Fatal(err)
	}
	s := b.kernel.state
	if len(s.Links)+len(s.Addrs)+len(s.Routes)+len(s.Chains)+len(s.Hooks)+len(s.Guard.Rules) > 0 {
		t.Errorf("left: %+v", s)
	}
	if steps, err := Cleanup(context.Background(), b.kernel, b.flows); err != nil || len(steps) > 0 {
		t.Errorf("again: %v, %v", steps, err)
	}
}
