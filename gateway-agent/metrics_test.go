// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
	"egress-gateway.io/shared/tenant"
)

type fakeSpool struct{}

func (fakeSpool) Pending() int    { return 2 }
func (fakeSpool) Dropped() uint64 { return 1 }

type fakeBus struct{}

func (fakeBus) Connected() bool { return true }
func (fakeBus) ServerClock() (ahead, uncertain time.Duration, known bool) {
	return time.Second, time.Millisecond, true
}
func (fakeBus) Expiries() map[string]time.Time {
	return map[string]time.Time{bus.CertClient: time.Unix(1795304380, 0)}
}
func (fakeBus) Rejected() map[string]uint64 { return map[string]uint64{"older": 1} }
func (fakeBus) Signs() map[string]bus.Sign {
	return map[string]bus.Sign{"c1": {Age: time.Second, Ahead: time.Second, AheadKnown: true}}
}

// fullScrape is a gateway with something to show of everything.
func fullScrape() scraped {
	blue := reconcile.Ref{Cluster: "c1", Name: "ns-blue"}
	now := time.Unix(1795304380, 0)
	snap := &reconcile.Snapshot{
		Pass: reconcile.Pass{Began: now},
		Memory: reconcile.Memory{Clusters: map[string]reconcile.Cluster{"c1": {Generation: 7, Nodes: map[string]tenant.Node{
			"node1": {Subnets: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/23")}}}}}},
		Statuses: map[reconcile.Ref]tenant.Status{blue: {Programmed: true}},
	}
	target := reconcile.PortTarget{Protocol: 17, Destination: netip.MustParseAddrPort("203.0.113.10:53"), Egress: netip.MustParseAddr("192.168.55.113")}
	ports := &reconcile.PortsView{
		At: now, Took: time.Millisecond, Tenants: map[reconcile.Ref]reconcile.PortUse{blue: {Connections: 9, Busiest: target, Used: 8}},
		Failed: map[reconcile.Ref]uint64{blue: 3}, Lost: reconcile.LostFlows{NotInserted: 4},
	}
	return scraped{
		snapshot: func() *reconcile.Snapshot { return snap }, ports: func() *reconcile.PortsView { return ports },
		bus: fakeBus{}, audit: fakeSpool{}, older: &older{},
		strays: func() *reconcile.StrayView {
			return &reconcile.StrayView{Lines: []reconcile.StrayLine{{Cluster: "c1", Node: "node1", Tenant: blue, Family: tenant.IPv4, Packets: 9}},
				Refused: map[reconcile.Ref]uint64{blue: 9}}
		},
		counters: func(context.Context) (kernel.Counters, error) {
			return kernel.Counters{
				Tenants:     map[string]kernel.Traffic{"c1/ns-blue": {FromPods: kernel.Counter{Packets: 5, Bytes: 500}}},
				Guards:      map[string]kernel.Counter{"pod source IPv4": {Packets: 6}},
				RefusedOf:   map[string]map[string]uint64{"c1/ns-blue": {"invalid": 4}},
				NodeSources: map[string]uint64{"c1/ns-blue": 8},
				Refused:     map[string]kernel.Counter{"untranslated": {Packets: 7}},
			}, nil
		},
		tables: func() (kernel.Tables, error) {
			use := kernel.TableUse{Used: 1, Limit: 2}
			return kernel.Tables{Conntrack: use, Buckets: 2, Neighbours: map[tenant.Family]kernel.TableUse{tenant.IPv4: use, tenant.IPv6: use}}, nil
		},
	}
}

func registryOf(s scraped) *prometheus.Registry {
	r, m := prometheus.NewRegistry(), newMetrics()
	m.observe(reconcile.Pass{Steps: 1, Kind: reconcile.PassWhole, Duration: time.Millisecond})
	m.register(r, s)
	return r
}

// TestMetricsAreDocumented compares docs/metrics.md with what the agent shows;
// UPDATE_GOLDEN=1 writes it.
func TestMetricsAreDocumented(t *testing.T) {
	table, err := daemon.MetricsTable(registryOf(fullScrape()))
	if err != nil {
		t.Fatal(err)
	}
	const path = "../docs/metrics.md"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- gateway-agent: generated -->\n", "<!-- end -->"
	head, rest, ok := strings.Cut(string(doc), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no part that begins with %q", path, begin)
	}
	if d := cmp.Diff(table, old); d != "" && os.Getenv("UPDATE_GOLDEN") == "" {
		t.Errorf("%s differs from the code; UPDATE_GOLDEN=1 go test -run Metrics ./gateway-agent ./cluster-agent writes it:\n%s", path, d)
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(head+begin+table+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Whatever the code names is in the table: the example above shows it all.
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range sources {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, metric := range regexp.MustCompile(`"(egress_[a-z_]+[a-z])"`).FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(table, "`"+metric[1]+"`") {
				t.Errorf("%s names %s, which the table lacks: add it to fullScrape", name, metric[1])
			}
		}
	}
}

// TestMetricsHoldNoAddress: labels are few, and name no pod and no destination.
func TestMetricsHoldNoAddress(t *testing.T) {
	families, err := registryOf(fullScrape()).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if strings.HasPrefix(f.GetName(), "egress_") && regexp.MustCompile(`\d+\.\d+\.\d+\.\d+|:`).MatchString(l.GetValue()) {
					t.Errorf("%s: label %s=%q", f.GetName(), l.GetName(), l.GetValue())
				}
			}
		}
	}
}

// TestMetricsTellFailures: a scrape does not pass off as complete what it lacks.
func TestMetricsTellFailures(t *testing.T) {
	for name, breakIt := range map[string]func(*scraped){
		"counters": func(s *scraped) {
			s.counters = func(context.Context) (kernel.Counters, error) { return kernel.Counters{}, errors.New("broken") }
		},
		"tables": func(s *scraped) {
			s.tables = func() (kernel.Tables, error) { return kernel.Tables{}, errors.New("broken") }
		},
	} {
		s := fullScrape()
		breakIt(&s)
		if _, err := registryOf(s).Gather(); err == nil {
			t.Errorf("%s: the scrape succeeded", name)
		}
	}
}
