// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/observe"
	"egress-gateway.io/test/scenario"
)

// emptyWhenWell are the queries of the dashboard that have no result in a world
// in which nothing is wrong, and why.
var emptyWhenWell = map[string]string{
	`sum by (reason) (egress_tenants_not_ready)`:                                                                                                      "there is a series for each reason that some tenant has",
	`sum by (node, tenant) (egress_gateway_stray_packets{instance=~"$gateway"})`:                                                                      "there is a series for each node that sends past a tenant's link, while it does",
	`sum by (tenant) (increase(egress_gateway_tenant_node_ip_sources_total{instance=~"$gateway",tenant=~"$tenant"}[5m]))`:                             "there is a series for each tenant of which a connection came with a node's address",
	`topk(20, sum by (tenant, reason) (rate(egress_gateway_tenant_refused_packets_total{instance=~"$gateway",tenant=~"$tenant"}[$__rate_interval])))`: "there is a series for each tenant of which something was refused",
	`egress_neighbour_entries{instance=~"$gateway"}`:                                                                                                  "the kernel shows its neighbour tables in the machine's first network namespace only",
	`egress_neighbour_limit{instance=~"$gateway"}`:                                                                                                    "the same",
}

const prometheusURL = "http://127.0.0.1:9090"

// watched is a world with a Prometheus that scrapes both agents and has our
// rules.
type watched struct{ *world }

// newWatchedWorld starts Prometheus in the control namespace; it dies with the
// lab. The gateway-agent listens on the management network for it.
func newWatchedWorld(t *testing.T) watched {
	t.Helper()
	w := watched{bareWorld(t)}
	ca, err := w.StartClusterAgent("cluster-agent", nil)
	w.must(err)
	gateway := lab.GatewayControl + ":9809"
	_, err = w.StartGatewayAgent(w.ctx, map[string]string{"GATEWAY_LISTEN": gateway})
	w.must(err)
	rules, err := filepath.Abs(filepath.Join(root, "deploy/prometheus/egress-gateway.rules.yaml"))
	w.must(err)
	config := fmt.Sprintf(`
global: {scrape_interval: 500ms, evaluation_interval: 500ms}
rule_files: [%q]
scrape_configs:
  - {job_name: gateway-agent, static_configs: [{targets: [%q]}]}
  - {job_name: cluster-agent, static_configs: [{targets: [%q]}]}
`, rules, gateway, w.ClusterEnv(ca.Name)["CLUSTER_LISTEN"])
	dir := filepath.Join(w.Dir(), "prometheus")
	w.must(os.MkdirAll(dir, 0o755))
	w.must(os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o644))
	p, err := w.Start(lab.PartControl, "prometheus", nil, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090")
	if err != nil {
		t.Fatalf("%v (`make setup` fetches prometheus into build/bin; or: apt-get install -y --no-install-recommends prometheus)", err)
	}
	w.must(w.AwaitPage(w.ctx, p, prometheusURL+"/-/ready"))
	return w
}

// api asks Prometheus and decodes the field data of its answer.
func (w watched) api(path string, query url.Values, data any) error {
	body, err := w.HTTPGet(w.ctx, lab.PartControl, prometheusURL+"/api/v1/"+path+"?"+query.Encode())
	if err != nil {
		return err
	}
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return fmt.Errorf("%s: %w", body, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}

// series is the number of series that a query results in.
func (w watched) series(expr string) (int, error) {
	var data struct{ Result []json.RawMessage }
	err := w.api("query", url.Values{"query": {expr}}, &data)
	return len(data.Result), err
}

// TestDashboardAndAlerts: each query of the dashboard gets an answer from a
// Prometheus that scrapes the running agents, and each alert rule can be
// evaluated there; none is due while all is well, and one is when NATS goes.
func TestDashboardAndAlerts(t *testing.T) {
	w := newWatchedWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	w.must(w.AddNamespace(w.ctx, "ns-blue"))
	pod := w.pod(w.Nodes()[0], "ns-blue")
	blue := w.tenant("ns-blue", "public")
	w.seenAs(pod, blue)
	flow := w.udp(pod)

	dashboard, err := observe.ReadDashboard(root)
	w.must(err)
	asked := map[string]bool{}
	for _, q := range dashboard.Queries() {
		asked[q.Expr] = true
		expr := q.PromQL("5s")
		if _, excused := emptyWhenWell[q.Expr]; excused {
			if n, err := w.series(expr); err != nil || n > 0 {
				t.Errorf("%s: %s: %d series, %v; want none: %s", q.Panel, q.Expr, n, err, emptyWhenWell[q.Expr])
			}
			continue
		}
		w.until(fmt.Sprintf("%s: %s to have a result", q.Panel, expr), func() (bool, error) {
			n, err := w.series(expr)
			return n > 0, err
		})
	}
	for expr := range emptyWhenWell {
		if !asked[expr] {
			t.Errorf("no panel asks for %s any more", expr)
		}
	}
	t.Logf("%d queries were answered", len(asked))
	w.unharmed("the flow while it was watched", flow, blue)

	alerts := w.evaluatedAlerts()
	for name, state := range alerts {
		if state != "inactive" {
			t.Errorf("%s is %s although nothing is wrong", name, state)
		}
	}
	w.must(w.KillNATS())
	w.until("the alert of the lost connection to be due", func() (bool, error) {
		return w.evaluatedAlerts()["EgressNATSDisconnected"] == "pending", nil
	})
	// What only its template can get wrong shows when an alert is due.
	var due struct {
		Alerts []struct{ Annotations map[string]string }
	}
	w.must(w.api("alerts", nil, &due))
	if !slices.ContainsFunc(due.Alerts, func(a struct{ Annotations map[string]string }) bool {
		return strings.Contains(a.Annotations["summary"], lab.GatewayControl+":9809 has no connection")
	}) {
		t.Errorf("no alert names the gateway: %+v", due.Alerts)
	}
}

// evaluatedAlerts returns the state of each alert, once all rules have been
// evaluated without an error.
func (w watched) evaluatedAlerts() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	w.until("all rules to be evaluated", func() (bool, error) {
		var data struct {
			Groups []struct {
				Rules []struct{ Name, State, Health, LastError string }
			}
		}
		if err := w.api("rules", nil, &data); err != nil {
			return false, err
		}
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				if out[r.Name] = r.State; r.Health != "ok" {
					return false, fmt.Errorf("%s: %s %s", r.Name, r.Health, r.LastError)
				}
			}
		}
		return len(out) > 0, nil
	})
	return out
}
