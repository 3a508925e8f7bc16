// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"egress-gateway.io/shared/bus"
)

const patience = 20 * time.Second

// natsServer is a real nats-server process on the configuration that was made.
type natsServer struct {
	t   *testing.T
	d   *Dir
	cmd *exec.Cmd
	log string
}

// startServer makes an installation with the clusters c1 and c2 and the gateways
// gw1 and gw2, starts its server and sets it up.
func startServer(t *testing.T) *natsServer {
	t.Helper()
	n := serveWithout(t, time.Now)
	conn := n.conn("setup", "setup")
	if _, err := bus.Setup(within(t), conn, 1); err != nil {
		t.Fatal(err)
	}
	return n
}

// serveWithout is startServer without streams, and with a clock of its own for
// certificates.
func serveWithout(t *testing.T, now func() time.Time) *natsServer {
	t.Helper()
	path := t.TempDir()
	d, _ := Open(path, now)
	_, err := d.Init(Spec{
		Clusters: []string{"c1", "c2"}, Gateways: []string{"gw1", "gw2"},
		Servers: []Server{{Name: "nats", Hosts: []string{"127.0.0.1"}, Listen: "127.0.0.1"}},
		Base:    Installation{Port: freePort(t), ConfigDir: filepath.Join(path, "nats"), StoreDir: filepath.Join(path, "store"), CredentialsDir: path},
	})
	if err != nil {
		t.Fatal(err)
	}
	n := &natsServer{t: t, d: d, log: filepath.Join(path, "nats.log")}
	n.start()
	t.Cleanup(n.kill)
	return n
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (n *natsServer) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command("../../build/bin/nats-server", "--config", n.d.file("nats", confFile))
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also if the test panics
	if err := n.cmd.Start(); err != nil {
		n.t.Fatalf("%v; `make lab-bin` builds it", err)
	}
	eventually(n.t, "nats-server", func() bool {
		c, err := net.Dial("tcp", n.address())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (n *natsServer) kill() {
	if n.cmd.ProcessState == nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait() // the signal is its error
	}
}

// reload does what `nats-server --signal reload` does, and waits until it is done.
func (n *natsServer) reload() {
	n.t.Helper()
	before := n.logged("Reloaded server configuration")
	if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		n.t.Fatal(err)
	}
	eventually(n.t, "the reload", func() bool { return n.logged("Reloaded server configuration") > before })
}

// logged counts a text in the server's log.
func (n *natsServer) logged(text string) int {
	b, err := os.ReadFile(n.log)
	if err != nil {
		n.t.Fatal(err)
	}
	return bytes.Count(b, []byte(text))
}

func (n *natsServer) address() string {
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(n.d.inst.Port))
}

// conn connects as the agents do, with a user's folder.
func (n *natsServer) conn(folder, user string) *bus.Conn {
	n.t.Helper()
	creds, err := ReadCredentials(n.d.file(folder))
	if err != nil {
		n.t.Fatal(err)
	}
	if creds.User != user {
		n.t.Fatalf("%s is the folder of %s", folder, creds.User)
	}
	c, err := bus.Connect(n.t.Context(), creds.Config, creds.User, slog.New(slog.DiscardHandler), bus.WithReconnectWait(20*time.Millisecond))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	if err := c.WaitConnected(within(n.t)); err != nil {
		n.t.Fatalf("%s can not connect: %v", user, err)
	}
	return c
}

// client is a connection past shared/bus, as whoever stole a key would have one.
type client struct {
	*nats.Conn
	user string

	mu      sync.Mutex
	refused map[string]bool // subjects
}

func (n *natsServer) client(folder string) *client {
	n.t.Helper()
	creds, err := ReadCredentials(n.d.file(folder))
	if err != nil {
		n.t.Fatal(err)
	}
	key, err := nats.NkeyOptionFromSeed(creds.Config.NkeyFile)
	if err != nil {
		n.t.Fatal(err)
	}
	c := &client{user: creds.User, refused: map[string]bool{}}
	c.Conn, err = nats.Connect(creds.Config.URL[0], key, nats.RootCAs(creds.Config.CAFile), nats.ClientCert(creds.Config.CertFile, creds.Config.KeyFile),
		nats.CustomInboxPrefix(bus.Inbox(creds.User)), nats.ErrorHandler(c.failed))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(c.Close)
	return c
}

// failed notes what the server refuses.
func (c *client) failed(_ *nats.Conn, sub *nats.Subscription, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[err.Error()] = true
	if sub != nil {
		c.refused[sub.Subject] = true
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond) // the pause of a poll with a deadline
	}
}
