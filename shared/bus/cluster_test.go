// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// clusterPatience is how long a cluster may need after it lost servers: an
// election takes up to 9 s, and a group that lost its leader twice needs two.
const clusterPatience = 45 * time.Second

// natsCluster is three nats-server processes, as three VMs would run them, on a
// loopback address that no other test has.
type natsCluster struct {
	t       testing.TB
	host    string
	servers []*clusterServer
}

// clusterServer is one of them. It keeps its store, its name and its port.
type clusterServer struct {
	name, config string
	port         int
	cmd          *exec.Cmd
}

// startCluster starts three servers and waits until they have a leader. Its
// address is the process's own: one cluster at a time.
func startCluster(t testing.TB) *natsCluster {
	t.Helper()
	pid := os.Getpid()
	n := &natsCluster{t: t, host: fmt.Sprintf("127.%d.%d.%d", 64+pid>>16&63, pid>>8&255, pid&255)}
	var routes []string
	for i := range 3 {
		routes = append(routes, fmt.Sprintf("nats://%s:%d", n.host, 6222+i))
	}
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		dir := t.TempDir()
		s := &clusterServer{name: name, config: filepath.Join(dir, "nats.conf"), port: 4222 + i}
		config := fmt.Sprintf("server_name: %s\nlisten: \"%s:%d\"\nhttp: \"%s:%d\"\njetstream { store_dir: %q }\n"+
			"cluster { name: test, listen: \"%s:%d\", routes: [%s] }\n",
			name, n.host, s.port, n.host, 8222+i, dir, n.host, 6222+i, strings.Join(routes, ", "))
		if err := os.WriteFile(s.config, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		n.servers = append(n.servers, s)
	}
	t.Cleanup(func() {
		for _, s := range n.servers {
			if s.cmd != nil {
				n.signal(s, syscall.SIGKILL)
			}
		}
	})
	n.setUp()
	return n
}

// setUp makes the streams. They take three servers, of which the last one comes
// while they are being made: as seen when all have just been started.
func (n *natsCluster) setUp() {
	n.t.Helper()
	for _, s := range n.servers {
		n.start(s)
	}
	n.settled(3)
	for _, s := range n.servers {
		n.signal(s, syscall.SIGTERM)
	}
	n.start(n.servers[0])
	n.start(n.servers[1])
	n.eventually("a leader of two", func() bool { return n.metaLeader() != nil })
	conn, ctx := n.connect("setup"), within(n.t)
	set := make(chan error, 1)
	go func() {
		done, err := Setup(ctx, conn, len(n.servers))
		if err == nil && len(done) != 3 {
			err = fmt.Errorf("setup did %q", done)
		}
		set <- err
	}()
	select {
	case err := <-set:
		n.t.Fatalf("setup ended with two of three servers: %v", err)
	case <-time.After(time.Second):
	}
	n.start(n.servers[2])
	if err := <-set; err != nil {
		n.t.Fatal(err)
	}
	n.settled(3)
}

func (n *natsCluster) start(s *clusterServer) {
	n.t.Helper()
	log, err := os.OpenFile(s.config+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command("../../build/bin/nats-server", "--config", s.config)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL} // also if the test panics
	if err := s.cmd.Start(); err != nil {
		n.t.Fatalf("%v; `make lab-bin` builds it", err)
	}
}

// signal sends a signal; after one that kills it waits for the end.
func (n *natsCluster) signal(s *clusterServer, sig syscall.Signal) {
	n.t.Helper()
	if s.cmd.ProcessState != nil {
		return
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		n.t.Error(err)
	}
	if sig == syscall.SIGKILL || sig == syscall.SIGTERM {
		_ = s.cmd.Wait() // the signal is its error
	}
}

func (n *natsCluster) get(s *clusterServer, page string, into any) bool {
	client := http.Client{Timeout: time.Second}
	answer, err := client.Get(fmt.Sprintf("http://%s:%d%s", n.host, s.port+4000, page))
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK && json.NewDecoder(answer.Body).Decode(into) == nil
}

// metaLeader returns the server that leads the group of the cluster itself.
func (n *natsCluster) metaLeader() *clusterServer {
	for _, s := range n.servers {
		var page struct {
			Meta struct {
				Leader string `json:"leader"`
			} `json:"meta_cluster"`
		}
		if n.get(s, "/jsz", &page) && page.Meta.Leader != "" {
			return n.named(page.Meta.Leader)
		}
	}
	return nil
}

func (n *natsCluster) named(name string) *clusterServer {
	if i := slices.IndexFunc(n.servers, func(s *clusterServer) bool { return s.name == name }); i >= 0 {
		return n.servers[i]
	}
	return nil
}

// settled waits until so many servers say that they are up to date in every
// stream they have.
func (n *natsCluster) settled(want int) {
	n.t.Helper()
	n.eventually(fmt.Sprintf("%d servers to be up to date", want), func() bool {
		healthy := 0
		for _, s := range n.servers {
			var page struct{ Status string }
			if n.get(s, "/healthz", &page) && page.Status == "ok" {
				healthy++
			}
		}
		return healthy == want && n.metaLeader() != nil
	})
}

func (n *natsCluster) eventually(what string, cond func() bool) {
	n.t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > clusterPatience {
			n.t.Fatalf("waited %s for %s", clusterPatience, what)
		}
		time.Sleep(20 * time.Millisecond) // the pause of a poll with a deadline
	}
	if took := time.Since(began); took > time.Second {
		n.t.Logf("%s: %s", what, took.Round(time.Millisecond))
	}
}

func (n *natsCluster) config() Config {
	var c Config
	for _, s := range n.servers {
		c.URL = append(c.URL, fmt.Sprintf("nats://%s:%d", n.host, s.port))
	}
	return c
}

// connect returns a Conn that prefers no server, as an agent's does.
func (n *natsCluster) connect(name string) *Conn {
	n.t.Helper()
	c := must(Connect(n.t.Context(), n.config(), name, quiet(), WithReconnectWait(50*time.Millisecond)))
	n.t.Cleanup(func() { _ = c.Close() })
	n.eventually("a connection of "+name, c.Connected)
	return c
}

// raw is a connection past this package.
func (n *natsCluster) raw() jetstream.JetStream {
	n.t.Helper()
	nc, err := nats.Connect(strings.Join(n.config().URL, ","), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(nc.Close)
	return must(jetstream.New(nc))
}

// leader returns the server that leads a stream's group.
func (n *natsCluster) leader(js jetstream.JetStream, stream string) (leader *clusterServer) {
	n.t.Helper()
	n.eventually("a leader of "+stream, func() bool {
		s, err := js.Stream(within(n.t), stream)
		if err != nil || s.CachedInfo().Cluster == nil {
			return false
		}
		leader = n.named(s.CachedInfo().Cluster.Leader)
		return leader != nil
	})
	return leader
}
