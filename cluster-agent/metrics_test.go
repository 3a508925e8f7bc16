// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/publish"
	"egress-gateway.io/shared/daemon"
)

type fakeSpool struct{}

func (fakeSpool) Pending() int    { return 2 }
func (fakeSpool) Dropped() uint64 { return 1 }

// TestMetricsAreDocumented compares docs/metrics.md with what the agent shows;
// UPDATE_GOLDEN=1 writes it.
func TestMetricsAreDocumented(t *testing.T) {
	r, yes := prometheus.NewRegistry(), func() bool { return true }
	figures{yes, yes, fakeSpool{}}.register(r, "v1.2.3")
	m := publish.NewMetrics(r)
	m.Pass(1)
	m.Failed("bus")
	m.Set(1, 1, []*v1alpha1.EgressPool{{ObjectMeta: metav1.ObjectMeta{Name: "public"}}})
	table, err := daemon.MetricsTable(r, "egress_")
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
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, metric := range regexp.MustCompile(`Name: "(egress_[a-z_]+)"|gauge\("(egress_[a-z_]+)"`).FindAllStringSubmatch(string(text), -1) {
				if !strings.Contains(table, "`"+metric[1]+metric[2]+"`") {
					t.Errorf("%s names %s, which the table lacks: add it to the example", name, metric[1]+metric[2])
				}
			}
		}
	}
}
