// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"time"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
	"egress-gateway.io/shared/natsconf"
)

// connection is how a command reaches NATS.
type connection struct {
	credentials string
	servers     words
	timeout     time.Duration
}

func (c *connection) flags(f *flag.FlagSet, user string) {
	f.StringVar(&c.credentials, "credentials", "", "`folder` "+user+" of the directory that egressctl init made; required")
	f.Var(&c.servers, "server", "tls://host:port `URL`s of NATS, instead of those in the folder")
	f.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long to wait for NATS")
}

// open connects, and waits until it is connected or the timeout is over.
func (c *connection) open(ctx context.Context) (conn *bus.Conn, servers int, err error) {
	if c.credentials == "" {
		return nil, 0, usage("--credentials is required")
	}
	creds, err := natsconf.ReadCredentials(c.credentials)
	if err != nil {
		return nil, 0, err
	}
	cfg := creds.Config
	if len(c.servers) > 0 {
		cfg.URL = c.servers
	}
	// Failed attempts are what there is to tell.
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	conn, err = bus.Connect(ctx, cfg, creds.User, log, bus.WithVersion("egressctl "+daemon.Version()))
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := conn.WaitConnected(ctx); err != nil {
		_ = conn.Close()
		return nil, 0, fmt.Errorf("no connection to NATS at %v as %s within %s", cfg.URL, creds.User, c.timeout)
	}
	return conn, len(creds.Config.URL), nil
}

func runSetup(ctx context.Context, e env, args []string) error {
	var c connection
	f := flag.NewFlagSet("setup", flag.ContinueOnError)
	c.flags(f, "setup")
	replicas := f.Int("replicas", 0, "`copies` of each: 1, or 3 with three servers; by default as many as there are servers in the folder, at most 3")
	err := e.parse(f, "Makes the buckets and the stream that the agents need, or makes them what they should be.\nA second run changes nothing. No agent has the rights for it.", args)
	if err != nil {
		return err
	}
	conn, servers, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if *replicas == 0 {
		*replicas = min(servers, 3)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	done, err := bus.Setup(ctx, conn, *replicas)
	for _, line := range done {
		fmt.Fprintln(e.out, line)
	}
	if err == nil && len(done) == 0 {
		fmt.Fprintln(e.out, "All is there; nothing was changed.")
	}
	return err
}
