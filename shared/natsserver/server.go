// SPDX-License-Identifier: Apache-2.0

package natsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

const (
	minRetry    = time.Second
	maxRetry    = time.Minute
	checkEvery  = 2 * time.Second
	startWithin = 2 * time.Minute // a large store is read before the server is ready
	readyPoll   = 100 * time.Millisecond
)

// ErrNotRunning says that the server does not run just now.
var ErrNotRunning = errors.New("the embedded NATS server does not run")

// Options of a Server.
type Options struct {
	// ConfigFile is the nats.conf of a lone server. It is read again, with the
	// other files of its directory, when one of them changes.
	ConfigFile string
	// StoreDir is where streams are kept; it is created.
	StoreDir string
	// Listen is the address for others, host:port; empty: what ConfigFile says.
	Listen string
	// Local is a user beside those of ConfigFile: this process alone can be it,
	// with the key that Sign has.
	Local User
	// Changed is called when the server has started, has ended, or when Err has
	// changed. It must not block.
	Changed func()
	Log     *slog.Logger
}

// User is a user of the account that has the streams.
type User struct {
	Publish []string // the subjects that it may publish to; none: there is no such user
	Inbox   string   // the prefix of those that it may subscribe to
}

// Server is an embedded NATS server. Its methods may be called by any goroutine.
type Server struct {
	opts   Options
	key    nkeys.KeyPair // of the local user, made anew in each process
	public string

	mu      sync.Mutex
	running *server.Server // nil = does not run
	err     error          // what is wrong, though it may run
}

// New returns a Server, which Run runs.
func New(o Options) (*Server, error) {
	s := &Server{opts: o, err: ErrNotRunning}
	var err error
	if s.key, err = nkeys.CreateUser(); err == nil {
		s.public, err = s.key.PublicKey()
	}
	if err != nil {
		return nil, fmt.Errorf("make a key for the embedded NATS server's own user: %w", err)
	}
	return s, nil
}

// LocalKey is the public nkey of the local user; Sign signs with the other.
func (s *Server) LocalKey() string { return s.public }

// Sign signs for the local user.
func (s *Server) Sign(nonce []byte) ([]byte, error) { return s.key.Sign(nonce) }

// Err says what is wrong with the server and what to do, or nil.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Running tells whether the server takes connections.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running != nil
}

// InProcessConn connects to the server without a network.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil, ErrNotRunning
	}
	return s.running.InProcessConn()
}

// Run keeps the server running until ctx ends. It then ends it, waits until the
// store is on disk, and returns ctx's error.
func (s *Server) Run(ctx context.Context) error {
	retry := minRetry
	for {
		began := time.Now()
		err := s.life(ctx)
		if ctx.Err() != nil {
			s.set(nil, ErrNotRunning)
			return ctx.Err()
		}
		s.set(nil, fmt.Errorf("%w: %w", ErrNotRunning, err))
		if time.Since(began) > maxRetry {
			retry = minRetry
		}
		if !pause(ctx, retry) {
			return ctx.Err()
		}
		retry = min(2*retry, maxRetry)
	}
}

// life is one life of the server, from its start to its end.
func (s *Server) life(ctx context.Context) error {
	found := fingerprint(s.opts.ConfigFile)
	opts, err := s.load()
	if err != nil {
		return err
	}
	ns, err := s.start(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		s.set(nil, ErrNotRunning)
		ns.Shutdown()
		ns.WaitForShutdown()
		s.opts.Log.Info("embedded NATS server ended")
	}()
	aside, err := setAside(opts.StoreDir, ns)
	if err != nil {
		return err
	}
	if len(aside) > 0 {
		return fmt.Errorf("starting anew without the streams that can not be read: %v", aside)
	}
	s.set(ns, s.warning(opts))
	s.opts.Log.Info("embedded NATS server started", "version", server.VERSION, "listen", ns.Addr().String(), "store", opts.StoreDir)
	return s.watch(ctx, ns, found)
}

// watch follows a running server: it takes over changes of the configuration,
// and returns why the server can not go on, or ctx's error.
func (s *Server) watch(ctx context.Context, ns *server.Server, found string) error {
	for pause(ctx, checkEvery) {
		if !ns.Running() {
			return errors.New("it ended by itself; see its messages above")
		}
		if !ns.JetStreamEnabled() {
			return fmt.Errorf("it switched its streams off; see its messages above, and whether there is room below %s", s.opts.StoreDir)
		}
		if now := fingerprint(s.opts.ConfigFile); now != found {
			found = now
			s.set(ns, s.reload(ns))
		}
	}
	return ctx.Err()
}

// reload gives the running server the configuration as it is now.
func (s *Server) reload(ns *server.Server) error {
	opts, err := s.load()
	if err == nil {
		err = ns.ReloadOptions(opts)
	}
	if err != nil {
		return fmt.Errorf("the embedded NATS server goes on with its old configuration: %w", err)
	}
	s.opts.Log.Info("embedded NATS server took over its changed configuration", "file", s.opts.ConfigFile)
	return s.warning(opts)
}

// start starts a server and waits until it takes connections.
func (s *Server) start(ctx context.Context, opts *server.Options) (*server.Server, error) {
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.opts.ConfigFile, err)
	}
	log := &logger{log: s.opts.Log, fatal: make(chan error, 1)}
	ns.SetLoggerV2(log, true, false, false)
	go ns.Start()
	deadline := time.Now().Add(startWithin)
	for {
		switch {
		case ns.ReadyForConnections(readyPoll) && ns.JetStreamEnabled():
			return ns, nil
		case ctx.Err() != nil:
			err = ctx.Err()
		case time.Now().After(deadline):
			err = fmt.Errorf("it was not ready within %s", startWithin)
		default:
			select {
			case err = <-log.fatal:
				err = s.explain(err, opts)
			default:
				continue
			}
		}
		ns.Shutdown()
		ns.WaitForShutdown()
		return nil, err
	}
}

func (s *Server) set(ns *server.Server, err error) {
	s.mu.Lock()
	changed := (ns == nil) != (s.running == nil) || text(err) != text(s.err)
	told := text(err) == text(s.err)
	s.running, s.err = ns, err
	s.mu.Unlock()
	if !told && err != nil && err != ErrNotRunning {
		s.opts.Log.Error("embedded NATS server; the data path is not touched", "err", err)
	}
	if changed && s.opts.Changed != nil {
		s.opts.Changed()
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// pause waits, and says whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
