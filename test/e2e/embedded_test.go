// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

func natsInGateway(o *scenario.WorldOptions) { o.NATS = lab.NATSEmbedded }

// NATS inside the gateway-agent: nothing else is installed. Whatever happens to
// the agent, to its server's store and its certificate, the data path stays, and
// the audit has every event once.
func TestEmbeddedNATS(t *testing.T) {
	w := newWorld(t, natsInGateway)
	flows := w.twoTenants()
	w.logMemory()

	t.Log("the agent is stopped and started, as for an upgrade")
	w.must(w.gatewayAgent().Terminate())
	w.must(w.gatewayAgent().Wait())
	w.spoolIsEmpty()
	w.startGateway()
	w.served("after-restart")
	w.auditIsWhole()

	t.Log("the agent is killed")
	w.must(w.gatewayAgent().Kill())
	w.startGateway()
	w.served("after-kill")
	w.auditIsWhole()

	t.Log("the server's certificate is lost: the agent serves its disk copy, and says why nothing changes")
	w.must(w.gatewayAgent().Kill())
	cert := filepath.Join(filepath.Dir(w.NATSConf(0)), "server.crt")
	w.must(os.Rename(cert, cert+".lost"))
	w.startGateway()
	w.statusTells("server.crt")
	w.must(w.AwaitPage(w.ctx, w.gatewayAgent(), "http://127.0.0.1:9809/readyz"))
	w.must(os.Rename(cert+".lost", cert))
	w.served("after-certificate")
	w.auditIsWhole()

	t.Log("the store of the audit is damaged: it is put aside, and begins anew")
	w.must(w.gatewayAgent().Terminate())
	w.must(w.gatewayAgent().Wait())
	store := filepath.Join(w.GatewayStateDir(), "nats")
	w.must(os.WriteFile(filepath.Join(store, "jetstream", "EGRESS", "streams", "EGRESS_AUDIT", "meta.inf"), []byte("garbage"), 0o600))
	w.startGateway()
	w.statusTells("put aside")
	w.served("after-damage")
	w.told("alloc", "tenant/after-damage")
	aside, err := filepath.Glob(filepath.Join(store, "damaged-*"))
	w.must(err)
	for _, dir := range aside {
		w.must(os.RemoveAll(dir))
	}
	w.allUnharmed(flows)
}

func (w *world) gatewayAgent() *lab.Process { return w.Process(lab.GatewayAgentName) }

func (w *world) startGateway() {
	w.t.Helper()
	_, err := w.StartGatewayAgent(w.ctx, nil)
	w.must(err)
}

// spoolIsEmpty fails the test if the agent ended before its server had its last
// events.
func (w *world) spoolIsEmpty() {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.GatewayStateDir(), "audit", "*"))
	w.must(err)
	for _, f := range files {
		info, err := os.Stat(f)
		w.must(err)
		if info.Size() > 0 {
			w.t.Errorf("%d bytes of audit events are left in %s", info.Size(), f)
		}
	}
	if len(files) == 0 {
		w.t.Error("there is no spool")
	}
}

// statusTells waits until `gateway-agent status` shows a problem.
func (w *world) statusTells(part string) {
	w.t.Helper()
	w.until("status to tell "+part, func() (bool, error) {
		out, err := w.GatewayCommand("status")
		if err != nil && strings.Contains(out, part) && strings.Contains(out, "embedded NATS server") {
			return true, nil
		}
		return false, fmt.Errorf("status: %w: %s", err, out)
	})
}

// logMemory tells what the agent needs.
func (w *world) logMemory() {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(w.gatewayAgent().PID), "status"))
	w.must(err)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
			w.t.Log(strings.TrimSpace(line))
		}
	}
}
