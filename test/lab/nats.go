// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/natsconf"
)

// The users of NATS, beside natsconf's auditor and setup.
const (
	labCluster = "lab"
	labGateway = "gw1"
)

// usersOfNATS marks the place in nats.conf where the lab's administrator comes.
const usersOfNATS = "users: [\n"

// NATS says where a lab has its NATS servers.
type NATS string

// NATSAlone is one nats-server in the control namespace, NATSThree a cluster of
// three there, and with NATSEmbedded the gateway-agent runs it.
const (
	NATSAlone    NATS = ""
	NATSThree    NATS = "three"
	NATSEmbedded NATS = "embedded"
)

// hosts returns the servers' addresses.
func (n NATS) hosts() []string {
	switch n {
	case NATSThree:
		return []string{"172.30.0.31", "172.30.0.32", "172.30.0.33"}
	case NATSEmbedded:
		return []string{GatewayControl}
	}
	return []string{Control}
}

// servers returns the names of the nats-server processes.
func (n NATS) servers() []string {
	switch n {
	case NATSThree:
		return []string{"nats-server-1", "nats-server-2", "nats-server-3"}
	case NATSEmbedded:
		return nil
	}
	return []string{"nats-server"}
}

// controlAddrs are those of the control namespace, with their prefix length.
func (l *Lab) controlAddrs() []string {
	out := []string{cidr(Control, controlBits)}
	if l.opts.NATS == NATSThree {
		for _, h := range l.opts.NATS.hosts() {
			out = append(out, cidr(h, controlBits))
		}
	}
	return out
}

// makeNATS makes the installation that `egressctl init` would make for the lab:
// TLS, and least permissions for each agent. Beside, an administrator, which no
// real one has, for tests that do damage.
func (l *Lab) makeNATS() error {
	d, err := natsconf.Open(l.path("installation"), time.Now)
	if !errors.Is(err, natsconf.ErrNoInstallation) {
		return fmt.Errorf("make NATS installation: %w", err)
	}
	var servers []natsconf.Server
	for i, host := range l.opts.NATS.hosts() {
		servers = append(servers, natsconf.Server{Name: fmt.Sprintf("nats-server-%d", i+1), Hosts: []string{host}, Listen: host})
	}
	_, err = d.Init(natsconf.Spec{
		Clusters: []string{labCluster}, Gateways: []string{labGateway}, Servers: servers,
		Base: natsconf.Installation{Port: natsPort, MonitorPort: natsMonitorPort, StoreDir: natsStoreMark, ConfigDir: natsConfigMark, CredentialsDir: l.path("installation")},
	})
	if err != nil {
		return fmt.Errorf("make NATS installation: %w", err)
	}
	l.natsInstallation = d.Installation()
	pair, err := nkeys.CreateUser()
	if err != nil {
		return fmt.Errorf("make NATS administrator: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return fmt.Errorf("make NATS administrator: %w", err)
	}
	seed, err := pair.Seed()
	if err != nil {
		return fmt.Errorf("make NATS administrator: %w", err)
	}
	errs := []error{os.WriteFile(l.path("installation", "admin.nk"), seed, 0o600)}
	for i := range servers {
		errs = append(errs, l.placeServer(i, public))
	}
	return errors.Join(errs...)
}

// natsStoreMark and natsConfigMark stand for directories that each server has
// for itself, where on VMs of their own all have the same.
const (
	natsStoreMark   = "/nats-store"
	natsConfigMark  = "/nats-config"
	natsMonitorPort = 8222
)

// placeServer makes a server's configuration one for this machine, and lets the
// administrator in.
func (l *Lab) placeServer(i int, admin string) error {
	name, host := l.natsInstallation.Servers[i].Name, l.opts.NATS.hosts()[i]
	dir := l.path("installation", l.natsInstallation.ServerDir(name))
	file := filepath.Join(dir, "nats.conf")
	conf, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("place NATS server: %w", err)
	}
	text := strings.NewReplacer(natsConfigMark, dir, natsStoreMark, l.path("nats", name),
		net.JoinHostPort("127.0.0.1", strconv.Itoa(natsMonitorPort)), net.JoinHostPort(host, strconv.Itoa(natsMonitorPort)),
		usersOfNATS, usersOfNATS+"      {nkey: "+admin+"}\n").Replace(string(conf))
	return os.WriteFile(file, []byte(text), 0o600)
}

// NATSConf is the path of a server's configuration, the first one's being 0.
func (l *Lab) NATSConf(server int) string {
	name := l.natsInstallation.Servers[server].Name
	return l.path("installation", l.natsInstallation.ServerDir(name), "nats.conf")
}

// NATSConfig is what a user connects with: the cluster-agent "lab", the gateway
// "gw1", "auditor" or "setup".
func (l *Lab) NATSConfig(user string) bus.Config {
	folder := map[string]string{labCluster: "clusters/" + labCluster, labGateway: "gateways/" + labGateway}[user]
	if folder == "" {
		folder = user
	}
	dir := l.path("installation", folder)
	return bus.Config{
		URL: l.natsInstallation.URLs(), NkeyFile: filepath.Join(dir, "client.nk"), CAFile: filepath.Join(dir, "ca.crt"),
		CertFile: filepath.Join(dir, "client.crt"), KeyFile: filepath.Join(dir, "client.key"),
	}
}

// withNATS adds the variables of a NATS configuration.
func withNATS(prefix string, c bus.Config, env map[string]string) map[string]string {
	maps.Copy(env, map[string]string{
		prefix + "_NATS_URL": strings.Join(c.URL, ","), prefix + "_NATS_NKEY_FILE": c.NkeyFile, prefix + "_NATS_CA_FILE": c.CAFile,
		prefix + "_NATS_CERT_FILE": c.CertFile, prefix + "_NATS_KEY_FILE": c.KeyFile,
	})
	return env
}

// NATSAdmin connects as one who may do anything.
func (l *Lab) NATSAdmin() (*nats.Conn, error) {
	key, err := nats.NkeyOptionFromSeed(l.path("installation", "admin.nk"))
	if err != nil {
		return nil, fmt.Errorf("connect to NATS as administrator: %w", err)
	}
	c := l.NATSConfig("setup")
	nc, err := nats.Connect(strings.Join(c.URL, ","), key, nats.RootCAs(c.CAFile), nats.ClientCert(c.CertFile, c.KeyFile), nats.SetCustomDialer(l.NATSDialer()))
	if err != nil {
		return nil, fmt.Errorf("connect to NATS as administrator: %w", err)
	}
	return nc, nil
}

// StartNATS starts the servers that do not run, on the stores that they had,
// waits until they take connections, and has what is missing made as `egressctl
// setup` does. An embedded server is the gateway-agent's affair.
func (l *Lab) StartNATS(ctx context.Context) error {
	if l.opts.NATS == NATSEmbedded {
		return nil
	}
	for i := range l.opts.NATS.servers() {
		if err := l.StartNATSServer(i); err != nil {
			return err
		}
	}
	for i, name := range l.opts.NATS.servers() {
		if err := l.awaitNATS(ctx, l.Process(name), l.opts.NATS.hosts()[i]); err != nil {
			return err
		}
	}
	return l.SetupNATS(ctx)
}

// StartNATSServer starts one of several servers unless it runs, and does not
// wait for it.
func (l *Lab) StartNATSServer(i int) error {
	name := l.opts.NATS.servers()[i]
	if p := l.Process(name); p != nil && p.Running() {
		return nil
	}
	_, err := l.Start(PartControl, name, nil, "nats-server", "--config", l.NATSConf(i))
	return err
}

// NATSMonitor is the URL of a page of a server's monitoring, of use inside the
// control namespace.
func (l *Lab) NATSMonitor(i int, page string) string {
	return fmt.Sprintf("http://%s:%d/%s", l.opts.NATS.hosts()[i], natsMonitorPort, page)
}

// NATSServer is the process of one of several servers.
func (l *Lab) NATSServer(i int) *Process { return l.Process(l.opts.NATS.servers()[i]) }

func (l *Lab) awaitNATS(ctx context.Context, p *Process, host string) error {
	addr := net.JoinHostPort(host, strconv.Itoa(natsPort))
	return l.await(ctx, p, func() error {
		c, err := l.dial(ctx, PartControl, "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		greeting := make([]byte, len("INFO"))
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		_, err = io.ReadFull(c, greeting)
		return err
	})
}

// SetupNATS makes the buckets and the stream that are missing.
func (l *Lab) SetupNATS(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	conn, err := bus.Connect(ctx, l.NATSConfig("setup"), "setup", slog.New(slog.DiscardHandler), bus.WithDialer(l.NATSDialer()))
	if err != nil {
		return err
	}
	_, err = bus.Setup(ctx, conn, l.natsInstallation.Replicas())
	return errors.Join(err, conn.Close())
}

// KillNATS ends the servers with SIGKILL; their stores stay.
func (l *Lab) KillNATS() error {
	var errs []error
	for _, name := range l.opts.NATS.servers() {
		errs = append(errs, l.kill(name))
	}
	return errors.Join(errs...)
}

// WipeNATS ends the servers that run, and removes their stores: all buckets and
// streams are lost. StartNATS brings up empty servers.
func (l *Lab) WipeNATS() error { return errors.Join(l.KillNATS(), l.empty("nats")) }

// NATSDialer dials from the control namespace; nats.SetCustomDialer takes it.
func (l *Lab) NATSDialer() *Dialer { return &Dialer{lab: l, part: PartControl} }
