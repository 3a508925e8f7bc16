// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"egress-gateway.io/test/scenario"
)

// traffic is a tenant with flows that have to go on whatever happens.
type traffic struct {
	tenant   scenario.Tenant
	udp, tcp *scenario.Flow
}

// twoTenants makes two tenants with flows from both nodes.
func (w *world) twoTenants() []traffic {
	w.t.Helper()
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	var out []traffic
	for i, ns := range []string{"ns-blue", "ns-red"} {
		tenant := w.tenant(ns, "public")
		p := w.pod(w.Nodes()[i], ns)
		w.seenAs(p, tenant)
		out = append(out, traffic{tenant, w.udp(p), w.tcp(p)})
	}
	return out
}

func (w *world) allUnharmed(flows []traffic) {
	w.t.Helper()
	for _, f := range flows {
		w.unharmed("UDP of "+f.tenant.Metadata.Name, f.udp, f.tenant)
		w.unharmed("TCP of "+f.tenant.Metadata.Name, f.tcp, f.tenant)
	}
}

// served proves that a later change still arrives.
func (w *world) served(namespace string) {
	w.t.Helper()
	tenant := w.tenant(namespace, "public")
	w.seenAs(w.pod("node1", namespace), tenant)
}

// pause lets traffic run on for a time, in a state in which nothing shall
// happen: there is no event to wait for.
func (w *world) pause(d time.Duration) {
	select {
	case <-w.ctx.Done():
	case <-time.After(d):
	}
}

// Proof 4: NATS goes, comes back, comes back empty, loses its bucket. Traffic
// does not notice, nothing is removed, and later changes arrive.
func TestNATSOutages(t *testing.T) {
	w := newWorld(t)
	flows := w.twoTenants()

	t.Log("NATS killed and restarted")
	w.must(w.KillNATS())
	w.pause(5 * time.Second)
	w.must(w.StartNATS(w.ctx))
	w.served("after-restart")

	t.Log("a namespace labelled while NATS is away")
	w.must(w.KillNATS())
	w.must(w.AddNamespace(w.ctx, "meanwhile"))
	w.must(w.Label(w.ctx, "meanwhile", "public"))
	w.until("its addresses and its APB, without NATS", func() (bool, error) {
		tenant, _, err := w.Tenant(w.ctx, "meanwhile")
		_, _, found, err2 := w.Route(w.ctx, "meanwhile")
		if err == nil {
			err = err2
		}
		return found && tenant.EgressIP().IsValid(), err
	})
	w.must(w.StartNATS(w.ctx))
	w.seenAs(w.pod("node2", "meanwhile"), w.ready("meanwhile"))

	t.Log("NATS wiped: it comes back without a bucket")
	w.must(w.WipeNATS())
	w.must(w.StartNATS(w.ctx))
	w.served("after-wipe")

	t.Log("the bucket deleted under the agents")
	w.deleteBucket("KV_egress-state")
	w.until("the cluster-agent to say what is missing, and the remedy", func() (bool, error) {
		log, err := os.ReadFile(w.Process("cluster-agent").LogPath)
		return strings.Contains(string(log), "bucket egress-state: it does not exist; `egressctl setup` makes it"), err
	})
	w.must(w.SetupNATS(w.ctx))
	w.served("after-deletion")

	t.Log("the bucket deleted and made again by setup, empty")
	w.deleteBucket("KV_egress-state")
	w.must(w.SetupNATS(w.ctx))
	w.served("after-recreation")

	w.allUnharmed(flows)
}

func (w *world) jetstream() (jetstream.JetStream, func()) {
	w.t.Helper()
	nc, err := w.NATSAdmin()
	w.must(err)
	js, err := jetstream.New(nc)
	w.must(err)
	return js, nc.Close
}

func (w *world) deleteBucket(stream string) {
	w.t.Helper()
	js, done := w.jetstream()
	defer done()
	w.must(js.DeleteStream(w.ctx, stream))
}

// Proof 5: the API server is away for a minute, with traffic and with NATS; a
// second tenant that existed keeps its address through all of it.
func TestAPIServerAwayForAMinute(t *testing.T) {
	w := newWorld(t)
	flows := w.twoTenants()
	before, err := w.ListTenants(w.ctx)
	w.must(err)
	w.must(w.AddNamespace(w.ctx, "after-outage"))
	p := w.pod("node1", "after-outage")

	w.must(w.KillAPIServer())
	w.pause(time.Minute)
	w.must(w.StartAPIServer(w.ctx))

	w.until("the API server to answer as before", func() (bool, error) {
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
		defer cancel()
		after, err := w.ListTenants(ctx)
		if err != nil {
			return false, err
		}
		for name, tenant := range before {
			if after[name].EgressIP() != tenant.EgressIP() || after[name].GatewayIP() != tenant.GatewayIP() {
				t.Errorf("before: %s; after: %s", tenant.Why(), after[name].Why())
			}
		}
		return true, nil
	})
	// What plays OVN's part reconnects in client-go's own time, up to a minute.
	w.must(w.Label(w.ctx, "after-outage", "public"))
	tenant, err := w.WaitReady(w.ctx, "after-outage", 2*time.Minute)
	w.must(err)
	w.allow(tenant)
	w.seenAs(p, tenant)
	w.allUnharmed(flows)
}

// Proof 7: the gateway VM reboots while NATS is away: tenants come back from
// its disk.
func TestRebootWithoutNATS(t *testing.T) {
	w := newWorld(t)
	flows := w.twoTenants()
	w.must(w.KillNATS())
	for _, f := range flows {
		f.tcp.Stop() // a connection can not outlive the VM's kernel in this issue
		f.udp.Stop()
	}
	w.must(w.ResetGateway())
	if state, err := w.Gateway(); err != nil || len(state.Mentions(flows[0].tenant.EgressIP().String())) > 0 {
		t.Fatalf("the VM came back with %v, error %v; want an empty kernel", state, err)
	}
	_, err := w.StartGatewayAgent(w.ctx, nil)
	w.must(err)
	for i, f := range flows {
		w.seenAs(w.pod(w.Nodes()[1-i], f.tenant.Metadata.Name), f.tenant)
	}
	w.must(w.StartNATS(w.ctx))
	w.served("after-reboot")
}
