// SPDX-License-Identifier: Apache-2.0

package natsserver

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/natsconf"
)

const patience = 20 * time.Second

// vm is a gateway VM: an installation as `egressctl init` makes it, a store, and
// a free port.
type vm struct {
	t     testing.TB
	dir   *natsconf.Dir
	path  string
	store string
	opts  Options
}

func newVM(t testing.TB) *vm { return newVMAt(t, time.Now) }

// newVMAt is newVM with certificates made at another time.
func newVMAt(t testing.TB, now func() time.Time) *vm {
	t.Helper()
	path := t.TempDir()
	d, err := natsconf.Open(path, now)
	if d == nil {
		t.Fatal(err)
	}
	port := freePort(t)
	if _, err := d.Init(natsconf.Spec{
		Clusters: []string{"c1"}, Gateways: []string{"gw1"}, Servers: []natsconf.Server{{Name: "nats", Hosts: []string{"127.0.0.1"}, Listen: "127.0.0.1"}},
		Base: natsconf.Installation{Port: port, ConfigDir: filepath.Join(path, "nats"), CredentialsDir: path},
	}); err != nil {
		t.Fatal(err)
	}
	v := &vm{t: t, dir: d, path: path, store: filepath.Join(t.TempDir(), "nats")}
	v.opts = Options{
		ConfigFile: filepath.Join(path, "nats", "nats.conf"), StoreDir: v.store,
		Local: User{Publish: bus.SetupPermissions(), Inbox: bus.Inbox("local")},
		Log:   slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	return v
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// run runs a server; the function that it returns ends it.
func (v *vm) run() (*Server, func()) {
	v.t.Helper()
	s := must(New(v.opts))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			v.t.Errorf("Run ended with %v", err)
		}
		if s.Running() {
			v.t.Error("it runs after its end")
		}
	})
	v.t.Cleanup(stop)
	return s, stop
}

func (v *vm) up() (*Server, func()) {
	v.t.Helper()
	s, stop := v.run()
	v.eventually("the server", s.Running)
	return s, stop
}

func (v *vm) eventually(what string, cond func() bool) {
	v.t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			v.t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// setup connects as the user that only this process knows, and sets up.
func (v *vm) setup(s *Server) {
	v.t.Helper()
	c := v.connect(bus.Config{}, "local", bus.WithInProcess(s), bus.WithKey(bus.Key{Public: s.LocalKey(), Sign: s.Sign}))
	ctx, cancel := context.WithTimeout(v.t.Context(), patience)
	defer cancel()
	if _, err := bus.Setup(ctx, c, 1); err != nil {
		v.t.Fatal(err)
	}
}

// inside connects as the gateway, without a network; outside as the cluster,
// over TLS.
func (v *vm) inside(s *Server) *bus.Conn {
	v.t.Helper()
	return v.connect(v.config("gateways/gw1"), "gw1", bus.WithInProcess(s))
}

func (v *vm) outside() *bus.Conn {
	v.t.Helper()
	return v.connect(v.config("clusters/c1"), "c1")
}

func (v *vm) config(user string) bus.Config {
	at := func(name string) string { return filepath.Join(v.path, user, name) }
	return bus.Config{
		URL: v.dir.Installation().URLs(), NkeyFile: at("client.nk"), CAFile: at("ca.crt"), CertFile: at("client.crt"), KeyFile: at("client.key"),
	}
}

func (v *vm) connect(cfg bus.Config, name string, opts ...bus.Option) *bus.Conn {
	v.t.Helper()
	c := v.dial(cfg, name, opts...)
	v.eventually("a connection of "+name, c.Connected)
	return c
}

func (v *vm) dial(cfg bus.Config, name string, opts ...bus.Option) *bus.Conn {
	v.t.Helper()
	c, err := bus.Connect(v.t.Context(), cfg, name, v.opts.Log, append(opts, bus.WithReconnectWait(20*time.Millisecond))...)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = c.Close() })
	return c
}

// tell publishes n audit events, and returns how many the stream has then.
func (v *vm) tell(c *bus.Conn, n int) {
	v.t.Helper()
	a := must(bus.NewAudit(c, bus.AuditOptions{Role: bus.RoleGateway, Name: "gw1", Log: v.opts.Log}))
	ctx, cancel := context.WithCancel(v.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	for i := range n {
		if err := a.Emit(bus.Event{Cluster: "c1", Kind: "tenant", Subject: fmt.Sprint(i)}); err != nil {
			v.t.Fatal(err)
		}
	}
	v.eventually("the events to be published", func() bool { return a.Pending() == 0 })
	cancel()
	<-done
}

func (v *vm) events() int {
	v.t.Helper()
	n := 0
	c := v.connect(v.config("auditor"), "auditor")
	ctx, cancel := context.WithTimeout(v.t.Context(), patience)
	defer cancel()
	if err := bus.ReadAudit(ctx, c, bus.AuditFilter{}, func(bus.AuditEvent) error { n++; return nil }); err != nil {
		v.t.Fatal(err)
	}
	return n
}

// Inside without a network, outside over TLS with a key: both reach the same
// streams, which survive a restart.
func TestServer(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	s, stop := v.up()
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	v.setup(s)
	gateway := v.inside(s)
	cluster := v.outside()
	v.tell(gateway, 300)
	if n := v.events(); n != 300 {
		t.Fatalf("%d events", n)
	}
	stop()
	v.eventually("the losses", func() bool { return !gateway.Connected() && !cluster.Connected() })
	if _, err := s.InProcessConn(); err != ErrNotRunning {
		t.Fatal(err)
	}
	s, _ = v.up()
	v.eventually("the cluster's connection", cluster.Connected)
	v.setup(s)
	if n := v.events(); n != 300 {
		t.Fatalf("%d events after a restart", n)
	}
}

// Nobody without a certificate and a key of ours gets in, and the local user's
// rights end where the setup's do.
func TestStrangersStayOut(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	s, _ := v.up()
	mine := v.config("gateways/gw1")
	for name, change := range map[string]func(*bus.Config){
		"without a certificate": func(c *bus.Config) { c.CertFile, c.KeyFile = "", "" },
		"without a key":         func(c *bus.Config) { c.NkeyFile = "" },
		"without TLS": func(c *bus.Config) {
			c.URL[0] = strings.Replace(c.URL[0], "tls:", "nats:", 1)
			c.CAFile, c.CertFile, c.KeyFile = "", "", ""
		},
	} {
		cfg := mine
		cfg.URL = []string{mine.URL[0]}
		change(&cfg)
		if c := v.dial(cfg, "gw1"); c.Connected() {
			t.Errorf("%s: connected", name)
		}
	}
	if c := v.dial(bus.Config{}, "gw1", bus.WithInProcess(s)); c.Connected() {
		t.Error("inside without a key: connected")
	}
}

// The address can be another one than the configuration's.
func TestListen(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.opts.Listen = net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	v.up()
	cfg := v.config("gateways/gw1")
	cfg.URL = []string{"tls://" + v.opts.Listen}
	v.connect(cfg, "gw1")
	if c := v.dial(v.config("gateways/gw1"), "gw1"); c.Connected() {
		t.Error("it listens on the configuration's address")
	}
}

// A new gateway is let in without a restart.
func TestChangedConfiguration(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	s, _ := v.up()
	gateway := v.inside(s)
	if _, err := v.dir.Init(natsconf.Spec{Gateways: []string{"gw2"}}); err != nil {
		t.Fatal(err)
	}
	v.connect(v.config("gateways/gw2"), "gw2")
	v.setup(s)
	if !gateway.Connected() {
		t.Error("the other gateway's connection was cut")
	}
	if err := os.WriteFile(v.opts.ConfigFile, []byte("listen: {"), 0o600); err != nil {
		t.Fatal(err)
	}
	v.eventually("the mistake to be told", func() bool {
		return s.Err() != nil && strings.Contains(s.Err().Error(), "goes on with its old configuration")
	})
	if !gateway.Connected() || !s.Running() {
		t.Error("a mistake in the configuration ended something")
	}
}
