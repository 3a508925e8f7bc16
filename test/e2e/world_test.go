// SPDX-License-Identifier: Apache-2.0

// Package e2e proves the main job end to end: the agents as built, in a lab of
// real parts, looked at from outside as users and partners do. A capture on
// the external wire runs through each test, and fails it if a single packet
// left with a source other than an egress IP that the test allowed.
package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// root is the checkout.
const root = "../.."

// soon is the limit for what takes milliseconds when all is well. It is long,
// so that a slow machine fails no test: figures are the benchmark's business.
const soon = 30 * time.Second

var worlds atomic.Int32

// world is a scenario.World that fails its test instead of returning errors.
type world struct {
	*scenario.World
	t       *testing.T
	ctx     context.Context
	allowed map[netip.Addr]bool
}

type option func(*scenario.WorldOptions)

func dualStack(o *scenario.WorldOptions) { o.DualStack = true }

func nodesLeadToGateway(o *scenario.WorldOptions) { o.NodeDefaultViaGateway = true }

// newWorld brings up a lab with both agents, starts the capture, and checks it
// when the test ends.
func newWorld(t *testing.T, options ...option) *world {
	t.Helper()
	w := bareWorld(t, options...)
	w.must(w.StartAgents(w.ctx))
	return w
}

// bareWorld is newWorld without agents.
func bareWorld(t *testing.T, options ...option) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: the lab is made of network namespaces; run: sudo make test")
	}
	name := fmt.Sprintf("e%dx%d", os.Getpid(), worlds.Add(1))
	o := scenario.WorldOptions{Name: name, Dir: filepath.Join(t.TempDir(), "lab"), BinDir: root + "/build/bin", Root: root}
	for _, f := range options {
		f(&o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	sw, err := scenario.NewWorld(ctx, o)
	if err != nil {
		t.Fatalf("bring up the lab (make build lab-bin builds what it needs): %v", err)
	}
	w := &world{World: sw, t: t, ctx: ctx, allowed: map[netip.Addr]bool{}}
	t.Cleanup(func() {
		if t.Failed() {
			for _, end := range lab.EndsOfLogs(w.Dir()) {
				t.Log(end)
			}
		}
		if err := w.Down(); err != nil {
			t.Errorf("take down the lab: %v", err)
		}
	})
	w.watchWire()
	return w
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

// must ends the test on an error.
func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// tenant creates a labelled namespace and waits until its tenant is Ready.
func (w *world) tenant(namespace, pool string) scenario.Tenant {
	w.t.Helper()
	w.must(w.AddNamespace(w.ctx, namespace))
	w.must(w.Label(w.ctx, namespace, pool))
	return w.ready(namespace)
}

// ready waits until a tenant is Ready, and lets its address onto the wire.
func (w *world) ready(name string) scenario.Tenant {
	w.t.Helper()
	t, err := w.WaitReady(w.ctx, name, soon)
	w.must(err)
	w.allow(t)
	return t
}

func (w *world) allow(t scenario.Tenant) {
	for _, a := range t.Addresses() {
		w.allowed[a] = true
	}
}

// pod adds a pod of a namespace on a node.
func (w *world) pod(node, namespace string, o ...lab.PodOption) *lab.Pod {
	w.t.Helper()
	p, err := w.AddPod(w.ctx, node, namespace, o...)
	w.must(err)
	return p
}

// seenAs fails the test unless the pod is seen with the tenant's egress IP, in
// each family that the tenant has. The stand-in for OVN programs a new pod's route in its own time, hence the wait;
// a wrong answer is never forgiven.
func (w *world) seenAs(p *lab.Pod, t scenario.Tenant) {
	w.t.Helper()
	for _, want := range []netip.Addr{t.EgressIP(), t.EgressIP6()} {
		if want.IsValid() {
			w.must(scenario.WaitSeenAs(w.ctx, p, want, soon))
		}
	}
}

// echo and echo6 are the outside server's echo service, for UDP and TCP.
var (
	echo  = fmt.Sprintf("%s:%d", lab.Server, lab.EchoPort)
	echo6 = fmt.Sprintf("[%s]:%d", lab.Server6, lab.EchoPort)
)

// udp starts a flow of one packet every 10 ms to the outside server, and waits
// for the first answers. udp6 does so over IPv6.
func (w *world) udp(p *lab.Pod) *scenario.Flow  { w.t.Helper(); return w.udpTo(p, echo) }
func (w *world) udp6(p *lab.Pod) *scenario.Flow { w.t.Helper(); return w.udpTo(p, echo6) }

func (w *world) udpTo(p *lab.Pod, server string) *scenario.Flow {
	w.t.Helper()
	conn, err := p.DialUDP(server)
	w.must(err)
	f := scenario.StartUDP(w.ctx, conn, 10*time.Millisecond)
	w.answers(f, 5)
	return f
}

// tcp does the same over one connection.
func (w *world) tcp(p *lab.Pod) *scenario.Flow  { w.t.Helper(); return w.tcpTo(p, echo) }
func (w *world) tcp6(p *lab.Pod) *scenario.Flow { w.t.Helper(); return w.tcpTo(p, echo6) }

func (w *world) tcpTo(p *lab.Pod, server string) *scenario.Flow {
	w.t.Helper()
	conn, err := p.DialTCP(w.ctx, server)
	w.must(err)
	f := scenario.StartTCP(w.ctx, conn, 10*time.Millisecond)
	w.answers(f, 5)
	return f
}

func (w *world) answers(f *scenario.Flow, n int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, soon)
	defer cancel()
	w.must(f.WaitAnswers(ctx, n))
}

// unharmed stops a flow and fails the test if it lost a packet or was seen
// with another source.
func (w *world) unharmed(what string, f *scenario.Flow, want scenario.Tenant) {
	w.t.Helper()
	r := f.Stop()
	if r.Err != nil || r.Lost() > 0 || r.Refused > 0 {
		w.t.Errorf("%s: %d of %d packets lost, %d refused, longest gap %s, error %v; want none; interruptions %v", what, r.Lost(), r.Sent, r.Refused, r.LongestGap, r.Err, r.Outages)
	}
	for source := range r.Sources {
		if source.IsValid() && !slices.Contains(want.Addresses(), source) {
			w.t.Errorf("%s: seen as %s, want one of %v", what, source, want.Addresses())
		}
	}
	w.t.Logf("%s: %d packets, %d lost, longest gap %s", what, r.Sent, r.Lost(), r.LongestGap.Round(time.Millisecond))
}

// until waits for something to hold.
func (w *world) until(what string, ok func() (bool, error)) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, soon)
	defer cancel()
	w.must(scenario.Until(ctx, what, func(context.Context) (bool, error) { return ok() }))
}

// gone fails the test if the gateway's kernel still mentions any of these
// addresses or names, or a connection does, after a moment.
func (w *world) gone(what ...string) {
	w.t.Helper()
	var left []string
	w.until(fmt.Sprintf("nothing of %v to be left on the gateway", what), func() (bool, error) {
		left = nil
		state, err := w.Gateway()
		if err != nil {
			return false, err
		}
		for _, x := range what {
			left = append(left, state.Mentions(x)...)
			if a, err := netip.ParseAddr(x); err == nil {
				entries, err := w.Connections(a)
				if err != nil {
					return false, err
				}
				left = append(left, entries...)
			}
		}
		if len(left) > 0 {
			return false, fmt.Errorf("left: %s", strings.Join(left, "\n"))
		}
		return true, nil
	})
}
