// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"egress-gateway.io/shared/tenant"
)

// patience is how long a test waits for something that must happen.
const patience = 15 * time.Second

// natsServer is a real nats-server with a store of its own, on one port for all
// its lives.
type natsServer struct {
	t    testing.TB
	dir  string
	port int
	s    *server.Server
	opts func(*server.Options)
}

func startServer(t testing.TB, opts ...func(*server.Options)) *natsServer {
	t.Helper()
	n := &natsServer{t: t, dir: t.TempDir(), port: server.RANDOM_PORT}
	if len(opts) > 0 {
		n.opts = opts[0]
	}
	n.start()
	t.Cleanup(n.kill)
	if n.opts == nil {
		n.setup()
	}
	return n
}

// setup makes what the agents find on a server.
func (n *natsServer) setup() []string {
	n.t.Helper()
	conn := must(Connect(n.t.Context(), n.config(), "setup", quiet(), WithReconnectWait(20*time.Millisecond)))
	defer conn.Close()
	return must(Setup(within(n.t), conn, 1))
}

func (n *natsServer) start() {
	n.t.Helper()
	o := &server.Options{
		Host: "127.0.0.1", Port: n.port, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: n.dir, JetStreamMaxStore: 4 << 30,
	}
	if n.opts != nil {
		n.opts(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		n.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		n.t.Fatal("nats-server did not start")
	}
	n.s, n.port = s, s.Addr().(*net.TCPAddr).Port
}

// kill ends the server; its store stays.
func (n *natsServer) kill() {
	if n.s != nil {
		n.s.Shutdown()
		n.s.WaitForShutdown()
		n.s = nil
	}
}

// wipe removes the store; the server must be dead.
func (n *natsServer) wipe() {
	n.t.Helper()
	if err := os.RemoveAll(filepath.Join(n.dir, "jetstream")); err != nil {
		n.t.Fatal(err)
	}
}

func (n *natsServer) config() Config {
	return Config{URL: []string{fmt.Sprintf("nats://127.0.0.1:%d", n.port)}}
}

// connect returns a Conn that is closed with the test.
func (n *natsServer) connect(name string, opts ...Option) *Conn {
	n.t.Helper()
	c := n.dial(name, opts...)
	eventually(n.t, "a connection", c.Connected)
	return c
}

func (n *natsServer) dial(name string, opts ...Option) *Conn {
	n.t.Helper()
	c, err := Connect(n.t.Context(), n.config(), name, quiet(), append([]Option{WithReconnectWait(20 * time.Millisecond)}, opts...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return c
}

// raw is a connection past this package, as another client would have one.
func (n *natsServer) raw() jetstream.JetStream {
	n.t.Helper()
	nc, err := nats.Connect(n.config().URL[0], nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		n.t.Fatal(err)
	}
	return js
}

func quiet() *slog.Logger {
	if os.Getenv("BUS_TEST_LOG") != "" { // for whoever has to find out why
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// run runs a loop until the test ends.
func run(t testing.TB, loop func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- loop(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != context.Canceled {
				t.Errorf("the loop ended with %v", err)
			}
		case <-time.After(patience):
			t.Error("the loop did not end with its context")
		}
	})
}

// eventually waits until cond holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
		time.Sleep(500 * time.Microsecond) // the pause of a poll with a deadline
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// aTenant returns a valid tenant; what makes its content differ.
func aTenant(cluster string, i int, generation int64) tenant.Tenant {
	return tenant.Tenant{
		Schema: tenant.Schema, Cluster: cluster, Name: fmt.Sprintf("ns-%d", i), UID: fmt.Sprintf("uid-%d", i), Generation: generation,
		Namespaces: []string{fmt.Sprintf("ns-%d", i)}, Pool: "public", Group: "default",
		GatewayIPs: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(100 + i/250), byte(1 + i%250)})},
		EgressIPs:  []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(2 + i/250), byte(1 + i%250)})},
	}
}

func aState(cluster string, tenants int) State {
	s := State{
		Nodes: []tenant.Node{{
			Schema: tenant.Schema, Cluster: cluster, Name: "node1.example",
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/23")}, Addresses: []netip.Addr{netip.MustParseAddr("192.168.99.21")},
		}},
		Network: &tenant.Network{Schema: tenant.Schema, Cluster: cluster, PodNetworks: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14")}},
	}
	for i := range tenants {
		s.Tenants = append(s.Tenants, aTenant(cluster, i, 1))
	}
	return s
}

// startWriter returns a Writer that runs.
func startWriter(t testing.TB, conn *Conn, cluster string, opts ...func(*WriterOptions)) *Writer {
	o := WriterOptions{Identity: "test", Log: quiet()}
	for _, opt := range opts {
		opt(&o)
	}
	w := NewWriter(conn, cluster, o)
	run(t, w.Run)
	return w
}

func startFollower(t testing.TB, conn *Conn) *Follower {
	f := NewFollower(conn, FollowerOptions{Log: quiet()})
	run(t, f.Run)
	return f
}

// names of the tenants that a view wants, tombstones left out.
func live(v View) map[string]int64 {
	out := map[string]int64{}
	for _, t := range v.Tenants {
		if !t.Released {
			out[t.Name] = t.Generation
		}
	}
	return out
}
