// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// bench is a loop with everything around it. The kernel and the directory
// outlive a restart, the rest does not.
type bench struct {
	t         *testing.T
	dir       string
	kernel    *fakeKernel
	flows     *fakeFlows
	announcer *fakeAnnouncer
	audit     *fakeAudit
	views     map[string]View
	trouble   []plan.Problem
	swept     int
	now       time.Time
	loop      *Loop
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir(), kernel: newFakeKernel(), audit: &fakeAudit{}, now: time.Unix(1_800_000_000, 0)}
	b.start()
	return b
}

// start begins a new life of the process.
func (b *bench) start() {
	b.t.Helper()
	b.flows, b.announcer, b.views, b.trouble = &fakeFlows{}, &fakeAnnouncer{}, nil, nil
	b.loop = NewLoop(Options{
		Gateway: "gw1", Group: "g1", Resync: time.Hour,
		Clock: func() time.Time { return b.now }, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Store: open(b.t, b.dir), Kernel: b.kernel, Flows: b.flows, Announcer: b.announcer, Audit: b.audit,
		Views:   func() map[string]View { return b.views },
		Trouble: func() []plan.Problem { return b.trouble },
		Sweep:   func() { b.swept++ },
	})
	if err := b.loop.restore(context.Background()); err != nil {
		b.t.Fatal(err)
	}
}

// show makes the bus show a confirmed view of c1.
func (b *bench) show(generation int64, tenants map[string]tenant.Tenant, nodes ...tenant.Node) {
	b.views = map[string]View{"c1": view(generation, tenants, nodes...)}
}

// pass makes a pass and returns the steps that it applied to the kernel.
func (b *bench) pass() (steps []string, ok bool) {
	before := len(b.kernel.steps)
	ok = b.loop.pass(context.Background())
	return b.kernel.steps[before:], ok
}

func (b *bench) mustPass() []string {
	b.t.Helper()
	steps, ok := b.pass()
	if !ok {
		b.t.Fatalf("the pass failed: %+v %+v", b.loop.Snapshot().Pass, b.loop.Snapshot().Problems)
	}
	return steps
}

func (b *bench) want(what string, want []string, got []string) {
	b.t.Helper()
	if diff := cmp.Diff(strings.Join(want, "\n"), strings.Join(got, "\n")); diff != "" {
		b.t.Errorf("%s (-want +got)\n%s", what, diff)
	}
}

// settled asserts that a pass finds nothing to do.
func (b *bench) settled() {
	b.t.Helper()
	state := b.stateFile()
	b.want("a second pass applies nothing", nil, b.mustPass())
	if b.stateFile() != state {
		b.t.Error("a second pass wrote the disk copy")
	}
}

func (b *bench) stateFile() string {
	info, err := os.Stat(filepath.Join(b.dir, stateName))
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(info.ModTime(), info.Sys())
}

func (b *bench) status(name string) string {
	st := b.loop.Snapshot().Statuses[Ref{"c1", name}]
	return strings.TrimSpace(fmt.Sprintf("%v %s/%d %s", st.Programmed, st.UID, st.Generation, st.Reason))
}

var (
	blueAddrs = []string{"eg001 192.168.99.13", "enp7s0 192.168.55.13"}
	bothAddrs = []string{"eg001 192.168.99.13", "eg002 192.168.99.14", "enp7s0 192.168.55.13", "enp7s0 192.168.55.14"}
)

func blueAndRed() map[string]tenant.Tenant {
	return map[string]tenant.Tenant{"blue": record("blue", 13), "red": record("red", 14)}
}

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
	b.kernel.host.OnLink = nil
	b.want("nothing is torn down", nil, b.mustPass())
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

func TestLoopHandMadeDamage(t *testing.T) {
	damages := map[string]func(*plan.State){
		"link": func(s *plan.State) {
			delete(s.Links, "eg001")
			delete(s.Addrs, plan.Addr{Dev: "eg001", IP: record("b", 13).GatewayIPs[0]})
		},
		"egress":  func(s *plan.State) { delete(s.Addrs, plan.Addr{Dev: "enp7s0", IP: record("b", 13).EgressIPs[0]}) },
		"routes":  func(s *plan.State) { clear(s.Routes) },
		"guard":   func(s *plan.State) { s.Guard = plan.Guard{} },
		"chains":  func(s *plan.State) { clear(s.Chains); clear(s.Hooks) },
		"hooks":   func(s *plan.State) { clear(s.Hooks) },
		"sysctls": func(s *plan.State) { maps.Copy(s.Sysctls, map[string]string{"net/ipv4/ip_forward": "0"}) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.show(1, blueAndRed(), node("n1", 0))
			b.mustPass()
			damage(&b.kernel.state)
			if len(b.mustPass()) == 0 {
				t.Error("not noticed")
			}
			b.want("addresses", bothAddrs, b.kernel.addrs())
			b.want("routes", []string{"10.128.0.0/23 via 192.168.99.20"}, b.kernel.routes())
			b.settled()
		})
	}
}

// TestLoopCrashAnywhere kills the process after each number of steps of a
// change that adds, moves and removes. A new life has to reach the same end.
func TestLoopCrashAnywhere(t *testing.T) {
	before := many(4)
	after := with(without(before, "t01"), func(m map[string]tenant.Tenant) {
		moved := m["t02"]
		moved.Generation, moved.EgressIPs = 2, record("x", 120).EgressIPs
		m["t02"] = moved
		gone := tombstone(m["t03"])
		m["t03"] = gone
		m["heir"] = tenantWith(record("heir", 130), before["t03"].EgressIPs[0]) // takes over t03's address
	})
	nodes := []tenant.Node{node("n1", 1), node("n3", 2)}
	build := func(t *testing.T) *bench {
		b := newBench(t)
		b.show(1, before, node("n1", 0), node("n2", 1))
		b.mustPass()
		return b
	}
	reference := build(t)
	reference.show(2, after, nodes...)
	steps := len(reference.mustPass())
	if steps < 20 {
		t.Fatalf("only %d steps; the change is too small to prove anything", steps)
	}
	for k := range steps {
		b := build(t)
		b.show(2, after, nodes...)
		b.kernel.crashAfter = k
		b.pass()
		b.kernel.crashAfter = -1
		b.start() // the bus is not there yet
		b.mustPass()
		b.show(2, after, nodes...)
		b.mustPass()
		b.want(fmt.Sprintf("addresses after a crash at step %d", k), reference.kernel.addrs(), b.kernel.addrs())
		b.want(fmt.Sprintf("routes after a crash at step %d", k), reference.kernel.routes(), b.kernel.routes())
		for _, name := range []string{"t01", "t03"} {
			if !strings.Contains(strings.Join(b.audit.told(EventRemoved), " "), "removed/uid-"+name+"/1") {
				t.Errorf("crash at step %d: the removal of %s was never told", k, name)
			}
		}
		b.settled()
		if t.Failed() {
			return
		}
	}
}

func tenantWith(t tenant.Tenant, egress netip.Addr) tenant.Tenant {
	t.EgressIPs = []netip.Addr{egress}
	return t
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
	if p := next("at the start"); p.Failures != 1 {
		t.Errorf("first pass: %+v", p)
	}
	if p := next("after a failure"); p.Failures != 1 {
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
