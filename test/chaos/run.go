// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/lab/namespace"
	"egress-gateway.io/test/lab/outside"
	"egress-gateway.io/test/scenario"
)

// options of a run.
type options struct {
	Name, Dir, BinDir, Root string
	Log                     io.Writer
	Duration                time.Duration
	Seed                    uint64
	Tenants                 int
	// WithoutGuards has a hand take the guards away all the while. Then packets
	// have to leave with wrong sources, or the test would see nothing.
	WithoutGuards bool
}

func (o *options) check() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, because it makes network namespaces; run: sudo make chaos")
	}
	if o.Duration < time.Second || o.Tenants < 2*steadyTenants || o.Tenants > 500 {
		return fmt.Errorf("want a duration of a second or more and %d to 500 tenants", 2*steadyTenants)
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano() % 1_000_000_000)
	}
	return nil
}

const (
	// steadyTenants are never touched but by stale neighbour entries, which a
	// translated flow has to survive. The first few of them have long flows.
	steadyTenants = 10
	longFlowsOf   = 4
	longInterval  = 20 * time.Millisecond

	steadyPool, churnPool = "steady", "churn"
	// spare addresses of the pool that tenants move to and fro.
	spare = 16
	// settle bounds the time until all tenants are Ready, at the start and when
	// all disturbances are over: both agents start anew on a busy machine.
	settle = 3 * time.Minute
)

// member is a tenant of the run.
type member struct {
	number int
	name   string
	pods   []*lab.Pod // one on each node that stays
	// Owned by the driver of the cluster:
	present, annotated bool
}

func (m *member) steady() bool { return m.number < steadyTenants }
func (m *member) pool() string {
	if m.steady() {
		return steadyPool
	}
	return churnPool
}

// run is one run of the test.
type world struct {
	*scenario.World
	opts    options
	began   time.Time
	members []*member
	watcher *watcher
	log     io.Writer
	random  *rand.Rand

	mu      sync.Mutex
	counts  map[string]int // disturbances, by what they are
	excuses []excuse
	faults  []string
}

// excuse is a time in which a hand at the gateway interrupts flows by itself.
type excuse struct {
	why      string
	from, to time.Time
}

func memberName(i int) string { return fmt.Sprintf("team-%04d", i) }

// chaos runs the test. An error means that it could not be carried out; what it
// found is in the result.
func chaos(ctx context.Context, o options) (_ result, err error) {
	restore, err := lab.RaiseNeighbourLimits()
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sw, err := scenario.NewWorld(ctx, scenario.WorldOptions{Name: o.Name, Dir: o.Dir, BinDir: o.BinDir, Root: o.Root, NodeDefaultViaGateway: true, DualStack: true})
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, sw.Down()) }()
	w := &world{World: sw, opts: o, began: time.Now(), counts: map[string]int{}, random: rand.New(rand.NewPCG(o.Seed, 0))}
	file, err := os.Create(filepath.Join(o.Dir, "log", "chaos.log"))
	if err != nil {
		return result{}, err
	}
	defer file.Close()
	w.log = file
	w.say("seed %d: %d tenants, %s of disturbances", o.Seed, o.Tenants, o.Duration)
	if err := w.prepare(ctx); err != nil {
		return result{}, err
	}
	records := newRecorder(o.Tenants)
	capture, err := w.CaptureExternalEach(records.see)
	if err != nil {
		return result{}, err
	}
	watching, stopWatching := context.WithCancel(ctx)
	w.watcher = startWatcher(watching, w.Cluster)
	defer w.watcher.done.Wait()
	defer stopWatching()
	flows, err := w.disturbed(ctx)
	captured, stopErr := capture.Stop()
	if err := errors.Join(err, stopErr); err != nil {
		return result{}, err
	}
	return w.conclude(ctx, records, captured, flows)
}

// disturbed starts the tenants and all traffic, and disturbs them.
func (w *world) disturbed(ctx context.Context) (_ []longFlow, err error) {
	echoing, stopEcho := context.WithCancel(ctx)
	echo, err := w.startEcho(echoing)
	if err != nil {
		stopEcho()
		return nil, err
	}
	defer func() { stopEcho(); err = errors.Join(err, <-echo) }()
	if err := w.labelAll(ctx); err != nil {
		return nil, err
	}
	sending, stopSending := context.WithCancel(ctx)
	var senders []chan error
	defer func() {
		stopSending()
		for _, done := range senders {
			err = errors.Join(err, <-done)
		}
	}()
	for i, node := range w.Nodes() {
		senders = append(senders, startSender(sending, w.Lab, node, w.speakers(i), w.random.Uint64()))
	}
	flows, err := w.startLongFlows(ctx)
	if err != nil {
		return nil, err
	}
	w.say("traffic runs; disturbances begin")
	err = w.disturb(ctx)
	if err == nil && !w.opts.WithoutGuards { // that all heals, the other runs show
		w.say("disturbances are over; waiting until all is well")
		err = w.settled(ctx)
	}
	for i := range flows {
		flows[i].result = flows[i].flow.Stop()
	}
	return flows, err
}

// prepare makes pools, namespaces, pods, and starts the agents.
func (w *world) prepare(ctx context.Context) error {
	n := w.opts.Tenants
	for _, p := range []scenario.Pool{
		{Name: steadyPool,
			EgressRanges:  []string{span("192.168.16.1", steadyTenants), span("2001:db8:55::1:0", steadyTenants)},
			GatewayRanges: []string{span("192.168.104.1", steadyTenants), span("fd00:99::1:0", steadyTenants)}},
		// No quarantine: an egress IP that is released has its next holder as soon
		// as the product allows. Gateway IPs rest for two minutes at least, so there
		// have to be many.
		{Name: churnPool,
			EgressRanges:  []string{span(churnBase, n+spare), span(churnBase6, n+spare)},
			GatewayRanges: []string{span("192.168.108.1", 8*n), span("fd00:99::2:0", 8*n)},
			Spec:          map[string]any{"quarantine": "0s"}},
	} {
		if err := w.CreatePool(ctx, p); err != nil {
			return err
		}
	}
	if err := errors.Join(w.startGatewayAgent(ctx), w.startClusterAgent()); err != nil {
		return err
	}
	g, making := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range n {
		m := &member{number: i, name: memberName(i)}
		w.members = append(w.members, m)
		g.Go(func() error {
			if err := w.AddNamespace(making, m.name); err != nil {
				return err
			}
			for _, node := range w.Nodes() {
				p, err := w.AddPod(making, node, m.name, lab.SharedNetwork())
				if err != nil {
					return err
				}
				m.pods = append(m.pods, p)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	w.say("%d namespaces with a pod on each of %v", n, w.Nodes())
	return nil
}

const (
	churnBase  = "192.168.20.1"
	churnBase6 = "2001:db8:55::2:0"
)

// span is the range of n addresses that begins with from.
func span(from string, n int) string { return from + "-" + nth(from, n-1) }

// startEcho starts the servers that the tenants send to, one port for each.
func (w *world) startEcho(ctx context.Context) (chan error, error) {
	var s *outside.Server
	err := namespace.Do(w.Namespace(lab.PartExternal), func() (err error) {
		s, err = outside.ListenEcho(firstPort, w.opts.Tenants, lab.Server, lab.Server6)
		return err
	})
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	return done, nil
}

func (w *world) startGatewayAgent(ctx context.Context) error {
	// What is deleted by hand is seen by the periodic comparison at the latest.
	_, err := w.StartGatewayAgent(ctx, map[string]string{"GATEWAY_RESYNC": "1s"})
	return err
}

func (w *world) startClusterAgent() error {
	_, err := w.StartClusterAgent("cluster-agent", map[string]string{
		"CLUSTER_LEASE_DURATION": "3s", "CLUSTER_LEASE_RENEW_DEADLINE": "2s", "CLUSTER_LEASE_RETRY_PERIOD": "500ms"})
	return err
}

func (w *world) labelAll(ctx context.Context) error {
	g, labelling := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, m := range w.members {
		m.present = true
		g.Go(func() error { return w.Label(labelling, m.name, m.pool()) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	began := time.Now()
	if err := w.allReady(ctx); err != nil {
		return err
	}
	w.say("all tenants are Ready after %.1f s", time.Since(began).Seconds())
	return nil
}

// allReady waits until each tenant that is present is Ready, and no other is
// there.
func (w *world) allReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	return scenario.Until(ctx, "all tenants to be Ready, and those that left to be gone", func(ctx context.Context) (bool, error) {
		tenants, err := w.ListTenants(ctx)
		if err != nil {
			return false, err
		}
		for _, m := range w.members {
			t, there := tenants[m.name]
			switch {
			case m.present && !there:
				return false, fmt.Errorf("%s is not there", m.name)
			case m.present && !t.Ready():
				return false, errors.New(t.Why())
			case !m.present && there:
				return false, fmt.Errorf("%s is still there", m.name)
			}
		}
		return true, nil
	})
}

// voices are the addresses of a pod, and where it sends to from each.
func voices(m *member, p *lab.Pod) []speaker {
	port := uint16(firstPort + m.number)
	return []speaker{
		{p.Address, netip.AddrPortFrom(netip.MustParseAddr(lab.Server), port)},
		{p.Address6, netip.AddrPortFrom(netip.MustParseAddr(lab.Server6), port)},
	}
}

func (w *world) speakers(node int) []speaker {
	var out []speaker
	for _, m := range w.members {
		out = append(out, voices(m, m.pods[node])...)
	}
	return out
}

func (w *world) say(format string, args ...any) {
	fmt.Fprintf(w.opts.Log, "%7.1f s  %s\n", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
}

// trace writes to a file beside the agents' logs what is done when, to be read
// together with them.
func (w *world) trace(format string, args ...any) {
	fmt.Fprintf(w.log, "%s  %s\n", time.Now().UTC().Format("15:04:05.000000"), fmt.Sprintf(format, args...))
}

// fault notes something that did not hold. It may be called by any goroutine.
func (w *world) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// count notes a disturbance.
func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}
