// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name, path string
		imports    []string
		want       string // part of the only complaint, or empty
	}{
		{"plan may use the records", "gateway-agent/internal/plan", []string{module + "shared/tenant", "net/netip"}, ""},
		{"plan has no I/O", "gateway-agent/internal/plan", []string{"os/exec"}, "pure"},
		{"plan must not know the kernel adapter", "gateway-agent/internal/plan", []string{module + "gateway-agent/internal/kernel"}, "must not import"},
		{"records import nothing of ours", "shared/tenant", []string{module + "shared/bus"}, "must not import"},
		{"reconcile reaches the bus by its own interface", "gateway-agent/internal/reconcile", []string{module + "shared/bus"}, "must not import"},
		{"one importer of client-go", "cluster-agent/internal/publish", []string{"k8s.io/client-go/dynamic"}, "only cluster-agent/internal/kube"},
		{"one importer of nats.go", "gateway-agent", []string{"github.com/nats-io/nats.go/jetstream"}, "only shared/bus"},
		{"agents do not meet", "gateway-agent", []string{module + "cluster-agent/internal/derive"}, "must not import"},
		{"a new package needs a rule", "shared/extra", nil, "no import rule"},
		{"a name that says nothing", "shared/bus/util", nil, "says nothing"},
		{"tests may import anything", "test/lab", []string{"github.com/vishvananda/netlink"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := check(c.path, c.imports)
			if c.want == "" && len(got) > 0 || c.want != "" && !strings.Contains(strings.Join(got, "\n"), c.want) {
				t.Errorf("check(%s, %v) = %q, want %q", c.path, c.imports, got, c.want)
			}
		})
	}
}
