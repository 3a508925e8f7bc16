// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
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
	before, v := b.views["c1"], view(generation, tenants, nodes...)
	if v.Serial = before.Serial + 1; maps.EqualFunc(before.Nodes, v.Nodes, sameNode) {
		v.Before, v.Changed = before.Serial, sortedKeys(differing(byName(before.Tenants), tenants, sameTenant))
	}
	b.views = map[string]View{"c1": v}
}

func byName(list []tenant.Tenant) map[string]tenant.Tenant {
	out := map[string]tenant.Tenant{}
	for _, t := range list {
		out[t.Name] = t
	}
	return out
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
