// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"egress-gateway.io/test/scenario"
)

// TestOwnersAreToldBeforePortsEnd has connection tracking hold connections with
// 81 % of the source ports of blue's egress IP towards one destination. The
// gateway counts them, blue's owner reads of it where the state of the tenant
// stands, the audit keeps it, and blue stays ready. With the connections the
// warning goes.
func TestOwnersAreToldBeforePortsEnd(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue, red := w.tenant("ns-blue", "public"), w.tenant("ns-red", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	const destination, ports = "203.0.113.11", 64512 * 81 / 100
	marks, err := w.RunInGateway("conntrack", "-L", "-s", p.Address.String(), "-o", "extended")
	w.must(err)
	i := strings.Index(marks, "mark=")
	if i < 0 {
		t.Fatalf("no connection of blue's pod carries a mark:\n%s", marks)
	}
	mark, _, _ := strings.Cut(marks[i+len("mark="):], " ")

	var entries bytes.Buffer
	for port := range ports {
		fmt.Fprintf(&entries, "-A -p udp -t 600 -s %s -d %s --sport %d --dport 53 -n %s -m %s\n", p.Address, destination, 1024+port, blue.EgressIP(), mark)
	}
	file := filepath.Join(t.TempDir(), "entries")
	w.must(os.WriteFile(file, entries.Bytes(), 0o600))
	if out, err := w.RunInGateway("conntrack", "-R", file); err != nil {
		t.Fatalf("%v: %.200s", err, out)
	}

	message := func(t scenario.Tenant) string { return t.Condition("Programmed").Message }
	warned, err := w.WaitTenant(w.ctx, "ns-blue", soon, "to be warned", func(t scenario.Tenant) bool {
		return strings.Contains(message(t), "PortsNearlyExhausted")
	})
	w.must(err)
	for _, part := range []string{blue.EgressIP().String(), "udp " + destination + ":53", "64512", "egress-gateway.io/egress-ips"} {
		if !strings.Contains(message(warned), part) {
			t.Errorf("the warning does not say %q: %q", part, message(warned))
		}
	}
	for _, kind := range []string{"Programmed", "Ready"} {
		if c := warned.Condition(kind); c.Status != "True" {
			t.Errorf("%s is %s: a warning keeps nobody from being served", kind, c.Status)
		}
	}
	if e := w.told("ports", "tenant/ns-blue"); !slices.ContainsFunc(stringsIn(e.Data), func(s string) bool { return strings.Contains(s, destination) }) {
		t.Errorf("the audit does not tell the destination: %s", e.Data)
	}
	others, err := w.WaitReady(w.ctx, "ns-red", soon)
	w.must(err)
	if strings.Contains(message(others), "Ports") {
		t.Errorf("red is warned of blue's ports: %q", message(others))
	}
	w.seenAs(p, blue)
	w.seenAs(w.pod("node1", "ns-red"), red)

	if out, err := w.RunInGateway("sh", "-c", "conntrack -D -p udp -d "+destination+" >/dev/null 2>&1"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, err = w.WaitTenant(w.ctx, "ns-blue", soon, "to be warned no more", func(t scenario.Tenant) bool {
		return t.Condition("Ready").Status == "True" && !strings.Contains(message(t), "Ports")
	})
	w.must(err)
}
