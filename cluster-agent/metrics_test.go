// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/cluster-agent/internal/kube"
	"egress-gateway.io/cluster-agent/internal/publish"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
)

type fakeSpool struct{}

func (fakeSpool) Pending() int    { return 2 }
func (fakeSpool) Dropped() uint64 { return 1 }

type fakeBus struct{}

func (fakeBus) Connected() bool                                           { return true }
func (fakeBus) ServerClock() (ahead, uncertain time.Duration, known bool) { return 1, 1, true }

func (fakeBus) Expiries() map[string]time.Time {
	return map[string]time.Time{bus.CertCA: time.Unix(1795304380, 0)}
}

type fakeGateways struct{}

func (fakeGateways) Ages() map[string]time.Duration { return map[string]time.Duration{"gw1": 1} }

// TestMetricsAreDocumented compares docs/metrics.md with what the agent shows;
// UPDATE_GOLDEN=1 writes it.
func TestMetricsAreDocumented(t *testing.T) {
	r := prometheus.NewRegistry()
	figures{func() (time.Duration, bool) { return 0, true }, fakeBus{}, fakeGateways{}, fakeSpool{}}.register(r)
	m := publish.NewMetrics(r)
	m.Pass(1)
	m.Failed("bus")
	m.Show(&publish.Figures{
		Pools:    []*v1alpha1.EgressPool{{ObjectMeta: metav1.ObjectMeta{Name: "public"}}},
		Tenants:  []publish.TenantFigure{{Name: "c1/ns-blue", Pool: "public", Reason: "NoGateway"}},
		Gateways: map[string]derive.Gateway{"gw1": {}},
	})
	client := kube.NewMetrics(r)
	client.Increment(t.Context(), "200", "GET", "api:6443")
	client.IncrementRetry(t.Context(), "429", "GET", "api:6443")
	client.Observe(t.Context(), "GET", url.URL{Host: "api:6443"}, 1)
	client.NewQueuedItemMetric(cache.InformerNameAndResource{})
	client.NewProcessingLatencyMetric(cache.InformerNameAndResource{})
	table, err := daemon.MetricsTable(r)
	if err != nil {
		t.Fatal(err)
	}
	const path = "../docs/metrics.md"
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- cluster-agent: generated -->\n", "<!-- end -->"
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
	for _, pattern := range []string{"*.go", "internal/publish/*.go", "internal/kube/*.go"} {
		sources, err := filepath.Glob(pattern)
		if err != nil || len(sources) == 0 {
			t.Fatal(pattern, err)
		}
		for _, name := range sources {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, metric := range regexp.MustCompile(`"((?:egress|informer|rest_client)_[a-z_]+[a-z])"`).FindAllStringSubmatch(string(text), -1) {
				if !strings.Contains(table, "`"+metric[1]+"`") {
					t.Errorf("%s names %s, which the table lacks: add it to the example", name, metric[1])
				}
			}
		}
	}
}
