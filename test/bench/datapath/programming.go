// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/tenant"
	"egress-gateway.io/test/lab/namespace"
)

const (
	idleFor = time.Minute
	// settle is the pause between two changes: tenants seldom come in rows, and
	// what the agent does after a change is no part of the next one.
	settle = 3 * time.Second

	natsURL   = "nats://127.0.0.1:4222"
	metricsAt = "127.0.0.1:9809"
)

// Programmed is what programming a gateway takes.
type Programmed struct {
	FromEmpty     []time.Duration // from the agent's start to the last tenant's first connection, in each family
	Asked         []time.Duration // one tenant more, from the record to the kernel, addresses asked for first as by default
	Added, Gone   []time.Duration // one tenant more or less, without that
	Pass          time.Duration   // a pass that reads everything and finds nothing to change, in the mean
	Idle          Idle
	SamplesOfPass int
}

// Program measures a gateway-agent with many tenants and a NATS server beside
// it. It needs root, and removes all that it made.
func Program(ctx context.Context, o Options, tenants, samples int, nats string) (p Programmed, err error) {
	t, err := build(ctx, fmt.Sprintf("egwpr%d", os.Getpid()), o.Families, tenants)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	g := t.gateway(Ours)
	w, records, stop, err := g.published(ctx, o.Dir, tenants, nats)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	listener, err := t.listen()
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, os.NewFile(uintptr(listener), "listener").Close()) }()

	start := time.Now()
	a, err := g.startAgent(o.Agent, o.Dir, natsURL)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	for _, f := range t.families {
		if err := t.firstConnection(ctx, g.in(f), a); err != nil {
			return p, err
		}
		p.FromEmpty = append(p.FromEmpty, time.Since(start))
	}
	fmt.Fprintf(o.Log, "programming: %d tenants from an empty kernel: %s\n", tenants, p.FromEmpty)
	if err := pause(ctx, 10*settle); err != nil { // addresses are announced meanwhile
		return p, err
	}
	if p.Asked, _, err = g.changes(ctx, w, a, records, (samples+3)/4); err != nil {
		return p, err
	}
	// What is measured next is the agent's own time, not its wait for answers.
	if err := g.restart(a, o.Agent, o.Dir, natsURL, "GATEWAY_PROBE_WAIT=0s"); err != nil {
		return p, err
	}
	if err := pause(ctx, 10*settle); err != nil {
		return p, err
	}
	sum, count, err := g.passes()
	if err != nil {
		return p, err
	}
	if p.Added, p.Gone, err = g.changes(ctx, w, a, records, samples); err != nil {
		return p, err
	}
	if p.Pass, p.SamplesOfPass, err = g.wholePasses(ctx, sum, count); err != nil {
		return p, err
	}
	p.Idle, err = idle(ctx, o.Log, a, idleFor)
	return p, err
}

// published starts a NATS server, writes the records of so many tenants to it
// and the same to the agent's disk copy. stop ends what it started.
func (g gateway) published(ctx context.Context, dir string, tenants int, nats string) (w *writer, records []tenant.Tenant, stop func() error, err error) {
	server, err := g.startServer(nats, dir)
	if err != nil {
		return nil, nil, nil, err
	}
	stop = func() error { return errors.Join(server.Process.Kill(), ended(server.Wait())) }
	w, err = g.startWriter(ctx)
	if err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	stopServer := stop
	stop = func() error { return errors.Join(w.close(), stopServer()) }
	records = make([]tenant.Tenant, tenants)
	for i := range records {
		records[i] = g.record(i)
	}
	if err := errors.Join(w.sync(ctx, records), g.writeState(dir, tenants)); err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	return w, records, stop, nil
}

// changes adds a tenant and removes it, so many times.
func (g gateway) changes(ctx context.Context, w *writer, a *agent, records []tenant.Tenant, samples int) (added, gone []time.Duration, err error) {
	for range samples {
		more, less, err := g.oneMore(ctx, w, a, records)
		if err != nil {
			return nil, nil, err
		}
		added, gone = append(added, more), append(gone, less)
	}
	return added, gone, nil
}

// startServer runs a NATS server where the agent is.
func (g gateway) startServer(binary, dir string) (*exec.Cmd, error) {
	cmd := exec.Command("ip", "netns", "exec", g.ns, binary, "-js", "-sd", filepath.Join(dir, "nats"), "-a", "127.0.0.1", "-p", "4222")
	return cmd, cmd.Start()
}

// ended is no error: the bench killed it.
func ended(err error) error {
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return nil
	}
	return err
}

// Dial dials within the gateway's namespace.
func (g gateway) Dial(network, address string) (c net.Conn, err error) {
	err = namespace.Do(g.ns, func() (err error) { c, err = net.Dial(network, address); return err })
	return c, err
}

// writer publishes records as the cluster's leader would.
type writer struct {
	conn     *bus.Conn
	families []tenant.Family
	*bus.Writer
	cancel context.CancelFunc
	done   chan error
}

func (g gateway) startWriter(ctx context.Context) (*writer, error) {
	log := slog.New(slog.DiscardHandler)
	conn, err := bus.Connect(ctx, bus.Config{URL: []string{natsURL}}, "bench", log, bus.WithDialer(g), bus.WithReconnectWait(100*time.Millisecond))
	if err != nil {
		return nil, err
	}
	setup, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if _, err := bus.Setup(setup, conn, 1); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w := &writer{conn: conn, families: g.families, Writer: bus.NewWriter(conn, cluster, bus.WriterOptions{Identity: "bench", Log: log}), done: make(chan error, 1)}
	ctx, w.cancel = context.WithCancel(ctx)
	go func() { w.done <- w.Run(ctx) }()
	return w, nil
}

func (w *writer) close() error {
	w.cancel()
	if err := <-w.done; err != nil && !errors.Is(err, context.Canceled) {
		return errors.Join(err, w.conn.Close())
	}
	return w.conn.Close()
}

// sync publishes; a server that has just started takes a moment.
func (w *writer) sync(ctx context.Context, records []tenant.Tenant) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	network := networkRecord(w.families)
	state := bus.State{Tenants: records, Nodes: []tenant.Node{nodeRecord(w.families)}, Network: &network}
	for {
		_, err := w.Sync(ctx, state)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// firstConnection waits until a pod of the last tenant is served in g's family.
func (t *topology) firstConnection(ctx context.Context, g gateway, a *agent) error {
	last := t.tenants - 1
	// The agent makes a family's gateway IPs last, and this one after all others.
	if err := g.until(ctx, a, g.gatewayIP(last), true); err != nil {
		return err
	}
	return namespace.Do(t.node, func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(g.pod(last), 0)), Timeout: patience * time.Millisecond}
		c, err := d.Dial("tcp", netip.AddrPortFrom(g.destination(last), tcpPort).String())
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// oneMore adds a tenant and removes it, and returns the times from the moment
// that its record was written to the change in the kernel: the gateway IP comes
// last, and with the egress IP has gone all that lets packets pass.
func (g gateway) oneMore(ctx context.Context, w *writer, a *agent, records []tenant.Tenant) (added, gone time.Duration, err error) {
	i := len(records)
	change := func(records []tenant.Tenant, there bool) (time.Duration, error) {
		if err := w.sync(ctx, records); err != nil {
			return 0, err
		}
		start := time.Now()
		if err := g.untilAll(ctx, a, append(g.gatewayIPs(i), g.egressIPs(i)...), there); err != nil {
			return 0, err
		}
		return time.Since(start), pause(ctx, settle)
	}
	if added, err = change(append(records[:i:i], g.record(i)), true); err != nil {
		return 0, 0, err
	}
	gone, err = change(records, false)
	return added, gone, err
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// wholePasses returns how long passes that look at everything have taken in the
// mean since the agent counted count of them, and how many these were. It waits
// for the first: such a pass gives way to changes.
func (g gateway) wholePasses(ctx context.Context, sum, count float64) (mean time.Duration, samples int, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		sumNow, countNow, err := g.passes()
		if err != nil {
			return 0, 0, err
		}
		if countNow > count {
			return time.Duration((sumNow - sum) / (countNow - count) * float64(time.Second)), int(countNow - count), nil
		}
		if err := pause(ctx, settle); err != nil {
			return 0, 0, fmt.Errorf("no pass has looked at everything: %w", err)
		}
	}
}

// passes reads the sum of the durations of passes that look at everything, and
// their number, from the agent's metrics.
func (g gateway) passes() (sum, count float64, err error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) { return g.Dial(network, address) }}}
	r, err := client.Get("http://" + metricsAt + "/metrics")
	if err != nil {
		return 0, 0, err
	}
	defer r.Body.Close()
	find := func(line, name string, v *float64) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			*v, err = strconv.ParseFloat(rest, 64)
		}
	}
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() && err == nil {
		find(lines.Text(), `egress_reconcile_duration_seconds_sum{kind="whole"}`, &sum)
		find(lines.Text(), `egress_reconcile_duration_seconds_count{kind="whole"}`, &count)
	}
	_, rest := io.Copy(io.Discard, r.Body)
	return sum, count, errors.Join(err, lines.Err(), rest)
}
