// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/tenant"
)

func TestCommandLine(t *testing.T) {
	setEnv(t, map[string]string{"STATE_DIR": t.TempDir()})
	tests := []struct {
		args        []string
		code        int
		out, errout string
	}{
		{[]string{"--help"}, exitOK, "GATEWAY_NAME", ""},
		{[]string{"help"}, exitOK, "confirm-removals", ""},
		{[]string{"--version"}, exitOK, "gateway-agent ", ""},
		{[]string{"frobnicate"}, exitUsage, "", `no command "frobnicate"`},
		{[]string{"run", "now"}, exitUsage, "", `unexpected argument "now"`},
		{[]string{"status", "--output", "yaml"}, exitUsage, "", "want text or json"},
		{[]string{"status", "--colour"}, exitUsage, "", "colour"},
		{[]string{"cleanup", "all"}, exitUsage, "", `unexpected argument "all"`},
		{[]string{"confirm-removals"}, exitOK, "nothing to confirm", ""},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			var out, errout bytes.Buffer
			if code := run(tt.args, os.Environ(), &out, &errout); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(out.String(), tt.out) || !strings.Contains(errout.String(), tt.errout) {
				t.Errorf("stdout %q, stderr %q", out.String(), errout.String())
			}
		})
	}
}

func TestWrongConfigurationEndsTheProgram(t *testing.T) {
	setEnv(t, map[string]string{"RESYNC": "0s", "NAM": "x"})
	var out, errout bytes.Buffer
	if code := run(nil, os.Environ(), &out, &errout); code != exitError {
		t.Errorf("exit code %d", code)
	}
	for _, part := range []string{"GATEWAY_RESYNC", "did you mean GATEWAY_NAME?"} {
		if !strings.Contains(errout.String(), part) {
			t.Errorf("%q lacks %q", errout.String(), part)
		}
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	dir := t.TempDir()
	setEnv(t, map[string]string{"STATE_DIR": dir})
	store, err := reconcile.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := store.Lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	for _, args := range [][]string{{"run"}, {"cleanup"}} {
		var out, errout bytes.Buffer
		if code := run(args, os.Environ(), &out, &errout); code != exitError || !strings.Contains(errout.String(), "is running") {
			t.Errorf("%v: %d %q", args, code, errout.String())
		}
	}
}

func TestConfirmRemovalsWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	setEnv(t, map[string]string{"STATE_DIR": dir})
	store, err := reconcile.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Save(exampleSight().Memory, nil); err != nil {
		t.Fatal(err)
	}
	var out, errout bytes.Buffer
	if code := run([]string{"confirm-removals"}, os.Environ(), &out, &errout); code != exitOK {
		t.Errorf("exit code %d: %s", code, errout.String())
	}
	if !strings.Contains(out.String(), "letting go of c1/ns-red (192.168.55.114)") {
		t.Errorf("stdout %q", out.String())
	}
	got, err := store.Confirmed()
	if diff := cmp.Diff(map[reconcile.Ref]string{{Cluster: "c1", Name: "ns-red"}: "uid-red"}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
}

// exampleSight is a gateway on which blue is served, red is held, and somebody
// deleted blue's egress address by hand.
func exampleSight() sight {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	entry := func(number int, name, uid, gateway, egress string, held bool) reconcile.Entry {
		return reconcile.Entry{Number: number, Held: held, Record: tenant.Tenant{
			Schema: tenant.Schema, Cluster: "c1", Name: name, UID: uid, Generation: 3, Namespaces: []string{name}, Pool: "public", Group: "g1",
			GatewayIPs: []netip.Addr{addr(gateway)}, EgressIPs: []netip.Addr{addr(egress)},
		}}
	}
	s := sight{
		Loaded: reconcile.Loaded{Found: true, Memory: reconcile.Memory{Clusters: map[string]reconcile.Cluster{"c1": {
			Generation: 1795304380000,
			Tenants: map[string]reconcile.Entry{
				"ns-blue": entry(1, "ns-blue", "uid-blue", "192.168.99.13", "192.168.55.113", false),
				"ns-red":  entry(2, "ns-red", "uid-red", "192.168.99.14", "192.168.55.114", true),
			},
			Nodes: map[string]tenant.Node{
				"node1": {Schema: tenant.Schema, Cluster: "c1", Name: "node1", Subnets: []netip.Prefix{prefix("10.128.0.0/23")}, Addresses: []netip.Addr{addr("192.168.99.21")}},
			},
		}}}},
		running: true, iptables: "1.8.9 (nf_tables)",
		host: plan.Host{
			Internal: "enp1s0", External: "enp7s0", MarkMask: 0xfff00000,
			OnLink: []netip.Prefix{prefix("192.168.64.0/18")}, Own: []netip.Addr{addr("192.168.99.12"), addr("192.168.55.12")},
		},
		counters: kernel.Counters{
			Tenants: map[string]kernel.Traffic{"c1/ns-blue": {FromPods: kernel.Counter{Packets: 236, Bytes: 38239}}},
			Guards:  map[string]kernel.Counter{"pod source IPv4": {Packets: 7}, "egress IP IPv4": {}},
		},
	}
	s.usage.Marks = map[uint32]reconcile.PortUse{0x100000: {Connections: 60100, Used: 59000, Busiest: reconcile.PortTarget{
		Protocol: 6, Destination: netip.MustParseAddrPort("203.0.113.10:443"), Egress: addr("192.168.55.113")}}}
	s.state, _ = plan.Desired(reconcile.InputOf(s.Memory, s.host))
	return s
}

// golden compares with a file; UPDATE_GOLDEN=1 writes it, to be read in the diff.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got)\n%s", path, diff)
	}
}

func textOf(t *testing.T, r report) string {
	t.Helper()
	r.Version = "v1.2.3"
	var b bytes.Buffer
	if err := r.print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestStatusText(t *testing.T) {
	c := Config{Name: "gw1", Group: "g1", InternalInterface: "enp1s0", ExternalInterface: "enp7s0", MarkMask: 0xfff00000}
	golden(t, "held.txt", textOf(t, newReport(c, exampleSight())))

	healthy := exampleSight()
	e := healthy.Memory.Clusters["c1"].Tenants["ns-red"]
	e.Held = false
	healthy.Memory.Clusters["c1"].Tenants["ns-red"] = e
	healthy.usage.Marks = nil
	golden(t, "healthy.txt", textOf(t, newReport(c, healthy)))

	broken := exampleSight()
	broken.running, broken.Found = false, true
	broken.counters.Strays = []plan.Stray{
		{Pod: netip.MustParseAddr("10.128.0.10"), Number: 1, Packets: 5}, {Pod: netip.MustParseAddr("10.128.0.11"), Packets: 2},
		{Pod: netip.MustParseAddr("10.128.0.12"), Packets: 3}, {Pod: netip.MustParseAddr("10.128.0.13"), Packets: 4},
	}
	others := func(_ context.Context, pods map[netip.Addr]bool) (map[netip.Addr]int, error) {
		if len(pods) != 3 || pods[netip.MustParseAddr("10.128.0.10")] {
			t.Errorf("asked whose these are: %v", pods)
		}
		return map[netip.Addr]int{netip.MustParseAddr("10.128.0.12"): 1, netip.MustParseAddr("10.128.0.13"): 2}, nil
	}
	if err := reconcile.Identify(t.Context(), broken.counters.Strays, others); err != nil {
		t.Fatal(err)
	}
	broken.counters.NodeSources = map[string]uint64{"c1/ns-blue": 3}
	broken.counters.RefusedOf = map[string]map[string]uint64{"c1/ns-blue": {"invalid": 4, "exit_guard": 1}}
	delete(broken.state.Addrs, plan.Addr{Dev: "enp7s0", IP: netip.MustParseAddr("192.168.55.113")})
	l := broken.state.Links["eg001"]
	l.Ready = false
	broken.state.Links["eg001"] = l
	broken.preflight = []kernel.Check{{Name: "default route", Err: errors.New("it leaves through enp1s0, not enp7s0"), Remedy: "let it leave through the external interface"}}
	golden(t, "broken.txt", textOf(t, newReport(c, broken)))
	golden(t, "strays.json", jsonOf(t, newReport(c, broken).Strays))

	golden(t, "empty.txt", textOf(t, newReport(c, sight{host: healthy.host, iptables: healthy.iptables})))
}

// TestStatusJSON: the names of the fields are for programs and do not change.
func TestStatusJSON(t *testing.T) {
	c := Config{Name: "gw1", Group: "g1", InternalInterface: "enp1s0", ExternalInterface: "enp7s0", MarkMask: 0xfff00000}
	r := newReport(c, exampleSight())
	r.Version = "v1.2.3"
	golden(t, "held.json", jsonOf(t, r))
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

func TestUnusableStateDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	setEnv(t, map[string]string{"STATE_DIR": filepath.Join(file, "state")})
	var out, errout bytes.Buffer
	if code := run([]string{"run"}, os.Environ(), &out, &errout); code != exitError || !strings.Contains(errout.String(), "set GATEWAY_STATE_DIR to a writable directory") {
		t.Errorf("%d %q", code, errout.String())
	}
}

// What has broadcast copied is told by a word of its own.
func TestReasonOfACheck(t *testing.T) {
	for name, want := range map[string]string{kernel.CheckBroadcast: "BroadcastCopied", "default route": "Preflight"} {
		if got := reason(kernel.Check{Name: name}); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
