// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
)

// What `make test` runs is `make chaos` with a tenth of the time and two fifths
// of the tenants; all else is the same code.
var (
	duration = flag.Duration("chaos.duration", fullDuration/10, "how long there are disturbances")
	tenants  = flag.Int("chaos.tenants", fullTenants*2/5, "how many tenants there are")
	seed     = flag.Uint64("chaos.seed", 0, "what the disturbances are drawn from; 0 takes one from the clock")
)

func TestChaos(t *testing.T) {
	carryOut(t, options{Name: fmt.Sprintf("ct%d", os.Getpid()), Duration: *duration, Seed: *seed, Tenants: *tenants})
}

// TestChaosWithoutGuards: the same test finds wrong packets once the guards are
// taken away. Its seed draws neighbour entries that go stale at once.
func TestChaosWithoutGuards(t *testing.T) {
	r := carryOut(t, options{Name: fmt.Sprintf("cw%d", os.Getpid()), Duration: 4 * time.Second, Seed: 1, Tenants: 2 * steadyTenants, WithoutGuards: true})
	if r.Reasons[neverATenants] == 0 {
		t.Errorf("no packet left untranslated; wrong are %v", r.Reasons)
	}
}

// carryOut fails the test if the run is not good.
func carryOut(t *testing.T, o options) result {
	const root = "../.."
	o.Dir, o.BinDir, o.Root, o.Log = filepath.Join(t.TempDir(), "lab"), root+"/build/bin", root, t.Output()
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r, err := chaos(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	r.print(t.Output())
	t.Logf("%s (%s)", r.line(), time.Since(began).Round(time.Second))
	if !r.good() {
		t.Error(r.err())
		for _, end := range lab.EndsOfLogs(o.Dir) {
			t.Log(end)
		}
	}
	return r
}
