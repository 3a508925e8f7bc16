// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/tenant"
)

// TestLaterChecks has a made-up machine whose limits are low: the daemon raises
// them to what its tenants and nodes need, tells once which it can not, and
// reports the tables that are nearly full, and what else is wrong, for as long as
// that is so. It looks once in a while.
func TestLaterChecks(t *testing.T) {
	root := t.TempDir()
	write := func(key, value string) {
		t.Helper()
		path := filepath.Join(root, "net", key)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const entries, most = "netfilter/nf_conntrack_count", "netfilter/nf_conntrack_max"
	write(entries, "10")
	write(most, "1000")
	for _, key := range []string{"ipv4/neigh/default/gc_thresh", "ipv6/neigh/default/gc_thresh"} {
		for _, n := range []string{"1", "2", "3"} {
			write(key+n, "128")
		}
	}
	gw, log := nettest.New(t), &bytes.Buffer{}
	other := nettest.New(t)
	gw.Wire("enp1s0", other, "eth0")
	gw.Wire("enp7s0", other, "eth1")
	gw.Run("ip address add 192.168.55.12/24 dev enp7s0; ip route add default via 192.168.55.13")
	var k *kernel.Kernel
	var err error
	gw.Do(func() {
		k, err = kernel.New(plan.Host{Internal: "enp1s0", External: "enp7s0", MarkMask: 0xfff00000}, kernel.Options{SysctlRoot: root, IPTables: "iptables-nft"})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	served := reconcile.Memory{Clusters: map[string]reconcile.Cluster{
		"one": {Tenants: map[string]reconcile.Entry{"blue": {}, "red": {}}, Nodes: map[string]tenant.Node{"n1": {}}},
		"two": {Tenants: map[string]reconcile.Entry{"blue": {}}, Nodes: map[string]tenant.Node{"n1": {}, "n2": {}, "n3": {}}},
	}}
	if tenants, nodes := loadOf(&reconcile.Snapshot{Memory: served}); tenants != 3 || nodes != 4 {
		t.Errorf("%d tenants and %d nodes, want 3 and 4", tenants, nodes)
	}
	// With so many nodes the neighbours of whoever else is at work on this machine do not matter.
	checks := &laterChecks{kernel: k, every: time.Hour, log: slog.New(slog.NewTextHandler(log, nil)), load: func() (tenants, nodes int) { return 1000, 1_000_000 }}
	look := func(want ...string) []plan.Problem {
		t.Helper()
		var found []plan.Problem
		gw.Do(func() { found = checks.problems(t.Context()) })
		var got []string
		for _, p := range found {
			what, _, _ := strings.Cut(p.Message, ":")
			got = append(got, p.Reason+" "+what)
		}
		if !slices.Equal(got, want) {
			t.Errorf("problems %q, want %q", got, want)
		}
		return found
	}

	look()
	for key, want := range map[string]string{most: "1024000", "ipv4/neigh/default/gc_thresh3": "2004096", "ipv6/neigh/default/gc_thresh1": "501024"} {
		if b, err := os.ReadFile(filepath.Join(root, "net", key)); err != nil || string(b) != want {
			t.Errorf("%s is %s (%v), want %s", key, b, err, want)
		}
	}
	if said := log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "nf_conntrack_buckets is 0 and should be 65536") {
		t.Errorf("said of limits that could not be raised: %s", said)
	}

	write(entries, "819200") // 80 %
	gw.Run("ip route delete default")
	look() // not yet
	checks.last = checks.last.Add(-time.Hour)
	const table, route = "TableNearlyFull connection tracking", "Preflight default route"
	if found := look(table, route); len(found) > 0 && !strings.Contains(found[0].Message, "80 % or more of 1024000 entries") {
		t.Errorf("told: %s", found[0].Message)
	}
	look(table, route) // of the look before
	if strings.Count(log.String(), "\n") != 1 {
		t.Errorf("said again: %s", log)
	}
	write(entries, "819199")
	gw.Run("ip route add default via 192.168.55.13")
	checks.last = checks.last.Add(-time.Hour)
	look()
}
