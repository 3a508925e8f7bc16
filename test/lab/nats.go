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

// makeNATS makes the installation that `egressctl init` would make for the lab:
// TLS, and least permissions for each agent. Beside, an administrator, which no
// real one has, for tests that do damage.
func (l *Lab) makeNATS() error {
	d, err := natsconf.Open(l.path("installation"), time.Now)
	if !errors.Is(err, natsconf.ErrNoInstallation) {
		return fmt.Errorf("make NATS installation: %w", err)
	}
	_, err = d.Init(natsconf.Spec{
		Clusters: []string{labCluster}, Gateways: []string{labGateway},
		Servers: []natsconf.Server{{Name: "lab-" + l.opts.Name, Hosts: []string{Control}, Listen: Control}},
		Base: natsconf.Installation{Port: natsPort, StoreDir: l.path("nats"), ConfigDir: l.path("installation", "nats"),
			CredentialsDir: l.path("installation")},
	})
	if err != nil {
		return fmt.Errorf("make NATS installation: %w", err)
	}
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
	conf, err := os.ReadFile(l.path("installation", "nats", "nats.conf"))
	if err != nil {
		return err
	}
	withAdmin := strings.Replace(string(conf), usersOfNATS, usersOfNATS+"      {nkey: "+public+"}\n", 1)
	return errors.Join(os.WriteFile(l.path("installation", "admin.nk"), seed, 0o600), os.WriteFile(l.natsConf(), []byte(withAdmin), 0o600))
}

func (l *Lab) natsConf() string { return l.path("installation", "lab.conf") }

// NATSURL is the address of NATS inside the lab.
func (l *Lab) NATSURL() string { return fmt.Sprintf("tls://%s:%d", Control, natsPort) }

// NATSConfig is what a user connects with: the cluster-agent "lab", the gateway
// "gw1", "auditor" or "setup".
func (l *Lab) NATSConfig(user string) bus.Config {
	folder := map[string]string{labCluster: "clusters/" + labCluster, labGateway: "gateways/" + labGateway}[user]
	if folder == "" {
		folder = user
	}
	dir := l.path("installation", folder)
	return bus.Config{
		URL: []string{l.NATSURL()}, NkeyFile: filepath.Join(dir, "client.nk"), CAFile: filepath.Join(dir, "ca.crt"),
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
	nc, err := nats.Connect(l.NATSURL(), key, nats.RootCAs(c.CAFile), nats.ClientCert(c.CertFile, c.KeyFile), nats.SetCustomDialer(l.NATSDialer()))
	if err != nil {
		return nil, fmt.Errorf("connect to NATS as administrator: %w", err)
	}
	return nc, nil
}

// StartNATS starts nats-server with JetStream on the store that it had, waits
// until it takes connections, and has what is missing made as `egressctl setup`
// does.
func (l *Lab) StartNATS(ctx context.Context) error {
	p, err := l.Start(PartControl, "nats-server", nil, "nats-server", "--config", l.natsConf())
	if err != nil {
		return err
	}
	addr := net.JoinHostPort(Control, strconv.Itoa(natsPort))
	err = l.await(ctx, p, func() error {
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
	if err != nil {
		return err
	}
	return l.SetupNATS(ctx)
}

// SetupNATS makes the buckets and the stream that are missing.
func (l *Lab) SetupNATS(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	conn, err := bus.Connect(ctx, l.NATSConfig("setup"), "setup", slog.New(slog.DiscardHandler), bus.WithDialer(l.NATSDialer()))
	if err != nil {
		return err
	}
	_, err = bus.Setup(ctx, conn, 1)
	return errors.Join(err, conn.Close())
}

// KillNATS ends nats-server with SIGKILL; its store stays.
func (l *Lab) KillNATS() error { return l.kill("nats-server") }

// WipeNATS ends nats-server if it runs, and removes its store: all buckets and
// streams are lost. StartNATS brings up an empty server.
func (l *Lab) WipeNATS() error { return errors.Join(l.KillNATS(), l.empty("nats")) }

// NATSDialer dials from the control namespace; nats.SetCustomDialer takes it.
func (l *Lab) NATSDialer() *Dialer { return &Dialer{lab: l, part: PartControl} }
