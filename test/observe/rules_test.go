// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"sigs.k8s.io/yaml"
)

const (
	root      = "../.."
	rulesFile = root + "/deploy/prometheus/egress-gateway.rules.yaml"
	testsFile = root + "/deploy/prometheus/egress-gateway.test.yaml"
)

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func readRules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []rule `json:"rules"`
		} `json:"groups"`
	}
	read(t, rulesFile, &file)
	var out []rule
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	if len(out) == 0 {
		t.Fatal("no rules")
	}
	return out
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatal(path, err)
	}
}

// promtool runs it below deploy/prometheus and returns what it says.
func promtool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := filepath.Abs(root + "/build/bin/promtool")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		if path, err = exec.LookPath("promtool"); err != nil {
			t.Fatal("no promtool: `make setup` fetches it into build/bin, or install it: apt-get install -y --no-install-recommends prometheus")
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = filepath.Dir(rulesFile)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestPromtool(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", filepath.Base(rulesFile)},
		{"test", "rules", filepath.Base(testsFile)},
		{"check", "config", "prometheus.example.yaml"},
	} {
		if out, err := promtool(t, args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Each alert has a case in which it fires and one in which it does not.
func TestAlertsAreTested(t *testing.T) {
	t.Parallel()
	var file struct {
		Tests []struct {
			Name  string `json:"name"`
			Exprs []struct {
				Samples []struct {
					Labels string `json:"labels"`
				} `json:"exp_samples"`
			} `json:"promql_expr_test"`
		} `json:"tests"`
	}
	read(t, testsFile, &file)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		name, what, _ := strings.Cut(test.Name, " ")
		samples := 0
		for _, e := range test.Exprs {
			samples += len(e.Samples)
			for _, s := range e.Samples {
				if strings.Contains(s.Labels, `alertname="`+name+`"`) && what == "fires" {
					fires[name] = true
				}
			}
		}
		if strings.HasPrefix(what, "does not fire") && len(test.Exprs) > 0 && samples == 0 {
			silent[name] = true
		}
	}
	for _, r := range readRules(t) {
		if !fires[r.Alert] || !silent[r.Alert] {
			t.Errorf("%s: tested to fire: %v; tested not to fire: %v", r.Alert, fires[r.Alert], silent[r.Alert])
		}
	}
}

// What the rules name exists, and what they say can be read and followed.
func TestAlertsNameWhatExists(t *testing.T) {
	t.Parallel()
	registry, err := ReadRegistry(root)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(root + "/docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\$labels\.([a-z_]+)`)
	for _, r := range readRules(t) {
		for _, wrong := range registry.Check(r.Expr) {
			t.Errorf("%s: %s", r.Alert, wrong)
		}
		if !slices.Contains([]string{"critical", "warning"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		if want := "docs/alerts.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
			t.Errorf("%s: runbook %q, want %q", r.Alert, r.Annotations["runbook"], want)
		}
		if !strings.Contains(string(doc), "\n### "+r.Alert+"\n") {
			t.Errorf("docs/alerts.md has no section %q", "### "+r.Alert)
		}
		for _, name := range []string{"summary", "description"} {
			text := r.Annotations[name]
			if len(text) < 20 {
				t.Errorf("%s: %s is %q", r.Alert, name, text)
			}
			if err := render(text); err != nil {
				t.Errorf("%s: %s: %v", r.Alert, name, err)
			}
			for _, m := range named.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(resultLabels(registry, r.Expr), m[1]) {
					t.Errorf("%s: %s names the label %s, which the result does not have", r.Alert, name, m[1])
				}
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (Egress\w+)$`).FindAllStringSubmatch(string(doc), -1) {
		if !slices.ContainsFunc(readRules(t), func(r rule) bool { return r.Alert == m[1] }) {
			t.Errorf("docs/alerts.md tells of %s, which there is no rule for", m[1])
		}
	}
	for _, name := range regexp.MustCompile("`(egress_[a-z_]+)").FindAllStringSubmatch(string(doc), -1) {
		if _, known := registry[name[1]]; !known && registry[name[1]+"_sum"] == nil {
			t.Errorf("docs/alerts.md names %s, which does not exist", name[1])
		}
	}
}

// resultLabels returns the labels that the result of a rule has: an outermost
// "by" leaves only its own.
func resultLabels(r Registry, expr string) []string {
	if m := regexp.MustCompile(`^\s*(?:sum|max|min) by \(([^)]*)\)`).FindStringSubmatch(expr); m != nil {
		return strings.FieldsFunc(m[1], func(c rune) bool { return c == ',' || c == ' ' })
	}
	return r.Labels(expr)
}

// render parses and runs a template as Prometheus does, which only tells when
// the alert fires that it can not.
func render(text string) error {
	same := func(v float64) string { return "x" }
	tmpl, err := template.New("").Funcs(template.FuncMap{"humanizePercentage": same, "humanizeDuration": same, "humanize": same}).
		Parse("{{$labels := .Labels}}{{$value := .Value}}" + text)
	if err != nil {
		return err
	}
	return tmpl.Execute(io.Discard, map[string]any{"Labels": map[string]string{}, "Value": 1.0})
}

// The checker itself: it sees what is wrong.
func TestRegistryChecks(t *testing.T) {
	t.Parallel()
	r := Registry{"egress_a": {"pool"}, "egress_b_total": nil}
	for expr, want := range map[string]string{
		`egress_a{pool="x"} > 0`:                           "",
		`sum by (job, pool) (egress_a) > 1`:                "",
		`egress_a / on (job) group_left () egress_b_total`: "",
		`egress_c > 0`:                                     "no metric egress_c",
		`egress_a{pol="x"}`:                                "no label pol of egress_a",
		`sum by (pol) (egress_a)`:                          "no label pol of any",
		`egress_b_total{pool="egress_a"}`:                  "no label pool of egress_b_total",
		`up == 0`:                                          "no metric of ours",
	} {
		got := strings.Join(r.Check(expr), "; ")
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

// operatorFile holds the same rules for the Prometheus Operator; UPDATE_GOLDEN=1
// writes it.
const operatorFile = root + "/deploy/prometheus/operator.yaml"

const operatorHead = `# SPDX-License-Identifier: Apache-2.0
#
# For the Prometheus Operator: scrapes the cluster-agents, and has the alert rules.
# Made from egress-gateway.rules.yaml: UPDATE_GOLDEN=1 go test ./test/observe
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: cluster-agent
  namespace: egress-gateway
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: cluster-agent
  podMetricsEndpoints:
  - port: metrics
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: egress-gateway
  namespace: egress-gateway
spec:
`

func TestOperatorHasTheSameRules(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	_, groups, ok := strings.Cut(string(rules), "\ngroups:\n")
	if !ok {
		t.Fatal("no groups in " + rulesFile)
	}
	var want strings.Builder
	want.WriteString(operatorHead)
	for line := range strings.Lines("groups:\n" + groups) {
		if line != "\n" {
			want.WriteString("  ")
		}
		want.WriteString(line)
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(operatorFile, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(operatorFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want.String() {
		t.Errorf("%s does not hold the rules of %s; UPDATE_GOLDEN=1 go test ./test/observe writes it", operatorFile, rulesFile)
	}
	// What it selects is what the deployment has.
	deployment, err := os.ReadFile(root + "/deploy/base/deployment.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"\n  namespace: egress-gateway\n", "\n        app.kubernetes.io/name: cluster-agent\n", "\n        - name: metrics\n"} {
		if !strings.Contains(string(deployment), part) {
			t.Errorf("deploy/base/deployment.yaml lacks %q", part)
		}
	}
	for doc := range strings.SplitSeq(string(have), "\n---\n") {
		var object struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil || object.Kind == "" {
			t.Errorf("%.60q is no object: %v", doc, err)
		}
	}
}
