// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
	"egress-gateway.io/shared/natsserver"
)

const (
	embeddedStore   = "nats"         // below the state directory
	embeddedTrouble = "nats-trouble" // holds what is wrong, for `status`
	// embeddedUser makes the streams in the embedded server. It is known to this
	// process only: a gateway VM holds no key that may.
	embeddedUser  = "setup"
	setupTimeout  = 30 * time.Second
	setupRetry    = 5 * time.Second
	storeReplicas = 1
)

// embedded is the NATS server inside this agent.
type embedded struct {
	server *natsserver.Server
	setup  *bus.Conn
	log    *slog.Logger
	file   string
	told   func() // the trouble changed

	changed, connected *daemon.Trigger
	conns              []*bus.Conn // to the server, from inside
}

// newEmbedded returns a server that does not run yet.
func newEmbedded(c Config, log *slog.Logger, told func()) (*embedded, error) {
	e := &embedded{
		log: log, file: filepath.Join(c.StateDir, embeddedTrouble), told: told,
		changed: daemon.NewTrigger(), connected: daemon.NewTrigger(),
	}
	var err error
	e.server, err = natsserver.New(natsserver.Options{
		ConfigFile: c.NATSEmbeddedConfig, StoreDir: filepath.Join(c.StateDir, embeddedStore), Listen: c.NATSEmbeddedListen,
		Local:   natsserver.User{Publish: bus.SetupPermissions(), Inbox: bus.Inbox(embeddedUser)},
		Changed: e.changed.Poke, Log: log,
	})
	return e, err
}

// connect makes a connection that the server's start wakes up. It must come
// before run.
func (e *embedded) connect(ctx context.Context, c bus.Config, name string, opts ...bus.Option) (*bus.Conn, error) {
	conn, err := bus.Connect(ctx, c, name, e.log, append(opts, bus.WithInProcess(e.server))...)
	if err == nil {
		e.conns = append(e.conns, conn)
	}
	return conn, err
}

// run runs the server, and keeps its streams and buckets what they should be,
// until ctx ends. The store is on disk then.
func (e *embedded) run(ctx context.Context) error {
	key := bus.Key{Public: e.server.LocalKey(), Sign: e.server.Sign}
	var err error
	if e.setup, err = e.connect(ctx, bus.Config{}, embeddedUser, bus.WithKey(key)); err != nil {
		return err
	}
	e.setup.OnStateChange(func(s bus.StateChange) {
		if s.Connected {
			e.connected.Poke()
		}
	})
	// The connection ends before the server, which is no loss then.
	last, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	server, _ := daemon.NewGroup(last)
	server.Go("server", e.server.Run)
	g, _ := daemon.NewGroup(ctx)
	g.Go("server events", e.follow)
	g.Go("setup", e.keepSetUp)
	err = errors.Join(g.Wait(), e.setup.Close())
	end()
	return errors.Join(err, server.Wait())
}

// follow hurries the connections when the server has started, and leaves word of
// what is wrong where `status` finds it.
func (e *embedded) follow(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.changed.C():
		}
		if e.server.Running() {
			for _, c := range e.conns {
				c.Hurry()
			}
		}
		e.leaveWord()
		e.told()
	}
}

func (e *embedded) leaveWord() {
	err := e.server.Err()
	if err == nil {
		err = os.Remove(e.file)
	} else {
		err = os.WriteFile(e.file, []byte(err.Error()+"\n"), 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Warn("`status` will not tell how the embedded NATS server is", "err", err)
	}
}

// keepSetUp makes the streams and buckets after each start of the server.
func (e *embedded) keepSetUp(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.connected.C():
		}
		call, cancel := context.WithTimeout(ctx, setupTimeout)
		done, err := bus.Setup(call, e.setup, storeReplicas)
		cancel()
		for _, what := range done {
			e.log.Info("embedded NATS server: " + what)
		}
		if err != nil && ctx.Err() == nil {
			e.log.Error("embedded NATS server", "err", err)
			time.AfterFunc(setupRetry, e.connected.Poke)
		}
	}
}

// problems is what the gateway reports of it; nothing while it starts.
func (e *embedded) problems() []plan.Problem {
	if e == nil {
		return nil
	}
	if err := e.server.Err(); err != nil && err != natsserver.ErrNotRunning {
		return []plan.Problem{{Reason: "EmbeddedNATS", Message: err.Error()}}
	}
	return nil
}

// embeddedProblem is what a running agent has left word of, or "".
func embeddedProblem(c Config) (string, error) {
	if !c.NATSEmbedded {
		return "", nil
	}
	b, err := os.ReadFile(filepath.Join(c.StateDir, embeddedTrouble))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read how the embedded NATS server is: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
