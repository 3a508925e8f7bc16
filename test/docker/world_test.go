// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// natsURL is NATS on the VM, as the cluster reaches it.
const natsURL = "tls://" + lab.GatewayControl + ":4222"

// soon is the limit for what takes a second when all is well.
const soon = time.Minute

// world is a lab whose gateway VM has a docker engine, and neither NATS nor an
// agent on it yet. A capture on the external wire runs until the test ends, and
// fails it if a packet left with a source that is not in allowed.
type world struct {
	*scenario.World
	t       *testing.T
	ctx     context.Context
	vm      *engine
	secrets string // what `egressctl init` made
	allowed map[netip.Addr]bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	tar := imagesTar(t)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	name := fmt.Sprintf("dk%d", os.Getpid())
	sw, err := scenario.NewWorld(ctx, scenario.WorldOptions{Name: name, Dir: filepath.Join(t.TempDir(), "lab"), BinDir: root + "/build/bin", Root: root,
		NATS: lab.NATSEmbedded}) // that is, the lab starts none: it is on the VM
	if err != nil {
		t.Fatalf("bring up the lab (make build lab-bin builds what it needs): %v", err)
	}
	w := &world{World: sw, t: t, ctx: ctx, allowed: map[netip.Addr]bool{}}
	t.Cleanup(func() {
		if err := w.Down(); err != nil {
			t.Errorf("take down the lab: %v", err)
		}
	})
	w.watchWire()
	w.vm = startEngine(t, inNetwork(w.Namespace(lab.PartGateway)))
	w.vm.docker("load", "-i", tar)
	w.secrets = filepath.Join(t.TempDir(), "secrets")
	w.must(os.Mkdir(w.secrets, 0o700))
	w.egressctl(w.secrets, "init", "--dir", "/egress", "--cluster", "lab", "--gateway", "gw1", "--nats-host", lab.GatewayControl)
	return w
}

// egressctl runs the container of that name, with a directory as /egress.
func (w *world) egressctl(dir string, args ...string) {
	w.t.Helper()
	flags := []string{"run", "--rm", "--network", "host", "--read-only", "--cap-drop", "ALL", "--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()), "-v", dir + ":/egress", image("egressctl")}
	w.t.Log(w.vm.docker(append(flags, args...)...))
}

// setupNATS makes the buckets and the stream.
func (w *world) setupNATS() {
	w.t.Helper()
	w.egressctl(w.secrets+"/setup", "setup", "--credentials", "/egress")
}

// startClusterAgent starts the cluster-agent in the cluster, with its secrets.
func (w *world) startClusterAgent() {
	w.t.Helper()
	file := func(name string) string { return filepath.Join(w.secrets, "clusters", "lab", name) }
	_, err := w.StartClusterAgent("cluster-agent", map[string]string{
		"CLUSTER_NATS_URL": natsURL, "CLUSTER_NATS_CA_FILE": file("ca.crt"),
		"CLUSTER_NATS_CERT_FILE": file("client.crt"), "CLUSTER_NATS_KEY_FILE": file("client.key"), "CLUSTER_NATS_NKEY_FILE": file("client.nk"),
	})
	w.must(err)
}

// watchWire captures what leaves the gateway until the test ends.
func (w *world) watchWire() {
	capture, err := w.CaptureExternal()
	w.must(err)
	w.t.Cleanup(func() {
		r, err := capture.Stop()
		if err != nil {
			w.t.Errorf("stop the capture: %v", err)
		}
		for _, problem := range r.Problems(slices.Collect(maps.Keys(w.allowed))...) {
			w.t.Error(problem)
		}
		w.t.Logf("external wire: %d packets, sources %v", r.Packets, r.BySource)
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// until waits for something to hold.
func (w *world) until(what string, ok func() (bool, error)) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, soon)
	defer cancel()
	w.must(scenario.Until(ctx, what, func(context.Context) (bool, error) { return ok() }))
}

// healthy waits until docker finds a container healthy.
func (w *world) healthy(container string) {
	w.t.Helper()
	w.until(container+" to be healthy", func() (bool, error) {
		state := w.vm.docker("inspect", "-f", "{{.State.Status}} {{with .State.Health}}{{.Status}} {{range .Log}}{{.Output}}{{end}}{{end}}", container)
		var status, health string
		_, _ = fmt.Sscan(state, &status, &health) // there may be no health yet
		if status != "running" && status != "created" {
			w.t.Fatalf("%s is %s:\n%s", container, state, w.logs(container))
		}
		if health != "healthy" {
			return false, fmt.Errorf("it is %s", state)
		}
		return true, nil
	})
}

func (w *world) logs(container string) string {
	out, err := w.vm.command(w.ctx, "docker", "logs", container).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out[max(0, len(out)-6000):])
}

// mainJob does what the product is for: two namespaces are labelled, and pods of
// both on two nodes are seen with their tenant's egress IP. It returns a pod of
// the first tenant on each node.
func (w *world) mainJob() (scenario.Tenant, []*lab.Pod) {
	w.t.Helper()
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	var tenants []scenario.Tenant
	pods := map[string][]*lab.Pod{}
	for _, ns := range []string{"ns-blue", "ns-red"} {
		w.must(w.AddNamespace(w.ctx, ns))
		for _, node := range w.Nodes() {
			p, err := w.AddPod(w.ctx, node, ns)
			w.must(err)
			pods[ns] = append(pods[ns], p)
		}
		w.must(w.Label(w.ctx, ns, "public"))
		tenant, err := w.WaitReady(w.ctx, ns, soon)
		w.must(err)
		for _, a := range tenant.Addresses() {
			w.allowed[a] = true
		}
		for _, p := range pods[ns] {
			w.must(scenario.WaitSeenAs(w.ctx, p, tenant.EgressIP(), soon))
		}
		tenants = append(tenants, tenant)
	}
	if tenants[0].EgressIP() == tenants[1].EgressIP() {
		w.t.Fatalf("two tenants share an address: %s; %s", tenants[0].Why(), tenants[1].Why())
	}
	return tenants[0], pods["ns-blue"]
}

// traffic is a UDP flow of 100 packets a second and a TCP connection from each
// of the pods.
type traffic struct {
	w      *world
	tenant scenario.Tenant
	flows  []*scenario.Flow
}

func (w *world) startTraffic(tenant scenario.Tenant, pods []*lab.Pod) *traffic {
	w.t.Helper()
	tr := &traffic{w: w, tenant: tenant}
	echo := fmt.Sprintf("%s:%d", lab.Server, lab.EchoPort)
	for _, p := range pods {
		udp, err := p.DialUDP(echo)
		w.must(err)
		tcp, err := p.DialTCP(w.ctx, echo)
		w.must(err)
		tr.flows = append(tr.flows, scenario.StartUDP(w.ctx, udp, 10*time.Millisecond), scenario.StartTCP(w.ctx, tcp, 10*time.Millisecond))
	}
	tr.goesOn(5)
	return tr
}

// goesOn waits for n more answers of each flow.
func (tr *traffic) goesOn(n int) {
	tr.w.t.Helper()
	ctx, cancel := context.WithTimeout(tr.w.ctx, soon)
	defer cancel()
	for _, f := range tr.flows {
		tr.w.must(f.WaitAnswers(ctx, n))
	}
}

// unharmed ends the traffic, and fails the test if one packet was lost or was
// seen with another source.
func (tr *traffic) unharmed(what string) {
	tr.w.t.Helper()
	sent, lost := 0, 0
	var gap time.Duration
	for _, f := range tr.flows {
		r := f.Stop()
		sent, lost, gap = sent+r.Sent, lost+r.Lost(), max(gap, r.LongestGap)
		if r.Err != nil || r.Lost() > 0 || r.Refused > 0 {
			tr.w.t.Errorf("%s: %d of %d packets lost, %d refused, error %v; interruptions %v", what, r.Lost(), r.Sent, r.Refused, r.Err, r.Outages)
		}
		for source := range r.Sources {
			if source.IsValid() && !slices.Contains(tr.tenant.Addresses(), source) {
				tr.w.t.Errorf("%s: seen as %s, want one of %v", what, source, tr.tenant.Addresses())
			}
		}
	}
	tr.w.t.Logf("%s: %d packets of %d flows, %d lost, longest gap %s", what, sent, len(tr.flows), lost, gap.Round(time.Millisecond))
}
