// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"egress-gateway.io/shared/rhythm"
	"egress-gateway.io/shared/tenant"
)

// How the connection behaves. A silent server is noticed after three pings.
const (
	reconnectWait = time.Second
	pingInterval  = 10 * time.Second
	pingsOut      = 2
	callTimeout   = 5 * time.Second // one request to the server
	drainTimeout  = 5 * time.Second
)

// ErrNotConnected says that there is no connection to NATS now. Nothing was
// sent, and it will be worth another try after the next StateChange.
var ErrNotConnected = errors.New("not connected to NATS")

// Conn is a connection to NATS that reconnects for ever.
type Conn struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger

	certFile, caFile string // empty without TLS

	phase time.Duration // of the moments at which it polls

	asyncErrors atomic.Uint64
	probing     atomic.Bool // the server is being asked whether it is there
	clock       serverClock

	mu       sync.Mutex
	state    StateChange
	changed  chan struct{} // closed at each change of state, and replaced
	watchers []func(StateChange)
	lastErr  string // last asynchronous error logged
	closing  bool
}

// StateChange says that the connection was made or lost.
type StateChange struct {
	Connected bool
	URL       string // of the server, without secrets
	Err       error  // why it was lost, if known
	Time      time.Time
}

// inProcessURL is what a server inside this process is called in messages.
const inProcessURL = "nats://in-process"

// Option changes how Connect works.
type Option func(*connOptions)

type connOptions struct {
	version string
	dialer  Dialer
	wait    time.Duration
	local   InProcess
	key     Key
}

// Dialer opens the transport connection to a server.
type Dialer interface {
	Dial(network, address string) (net.Conn, error)
}

// WithDialer makes the connection through d; tests use it to cut, delay and
// count connections.
func WithDialer(d Dialer) Option { return func(o *connOptions) { o.dialer = d } }

// InProcess is a server inside this process.
type InProcess interface {
	InProcessConn() (net.Conn, error)
}

// WithInProcess connects to s: the URLs and the files of the configuration that
// are about TLS mean nothing then.
func WithInProcess(s InProcess) Option { return func(o *connOptions) { o.local = s } }

// Key is an nkey: the public one, and what signs with the other.
type Key struct {
	Public string
	Sign   func([]byte) ([]byte, error)
}

// WithKey is for a user whose key stands in no file.
func WithKey(k Key) Option { return func(o *connOptions) { o.key = k } }

// WithVersion adds a program's name and version to what the server shows.
func WithVersion(v string) Option { return func(o *connOptions) { o.version = v } }

// WithReconnectWait sets the pause between two attempts to connect; tests use
// short ones.
func WithReconnectWait(d time.Duration) Option { return func(o *connOptions) { o.wait = d } }

// Connect starts a connection and returns. It fails only for what will not
// mend by itself: a bad configuration or name. If no server answers, it returns
// a Conn that is not connected yet and goes on trying until Close.
//
// name identifies the agent (a DNS label): its inbox is `_INBOX_<name>`, which
// the permissions on the server must allow. ctx bounds the first attempt only.
func Connect(ctx context.Context, cfg Config, name string, log *slog.Logger, opts ...Option) (*Conn, error) {
	if err := tenant.ValidateLabel(name); err != nil {
		return nil, fmt.Errorf("connect to NATS as %q: %w", name, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o := connOptions{wait: reconnectWait}
	for _, opt := range opts {
		opt(&o)
	}
	if o.local != nil {
		cfg.URL, cfg.CAFile, cfg.CertFile, cfg.KeyFile, cfg.TLSFirst = []string{inProcessURL}, "", "", "", false
	}
	c := &Conn{log: log, certFile: cfg.CertFile, caFile: cfg.CAFile, changed: make(chan struct{}), phase: phaseOf(name)}
	natsOpts, key, err := cfg.options()
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	natsOpts = append(natsOpts, c.options(name, o)...)
	if c.nc, err = nats.Connect(strings.Join(cfg.URL, ","), natsOpts...); err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	if key != nil {
		key.conn.Store(c.nc)
	}
	if c.js, err = jetstream.New(c.nc, jetstream.WithDefaultTimeout(callTimeout),
		jetstream.WithPublishAsyncTimeout(callTimeout)); err != nil {
		c.nc.Close()
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return c, nil
}

// untilPoll returns how long it is until buckets are asked about again: those
// that one process uses at the same moment, those of different agents at others.
func (c *Conn) untilPoll() time.Duration { return rhythm.Until(time.Now(), pollEvery, c.phase) }

func phaseOf(name string) time.Duration {
	h := fnv.New32a()
	h.Write([]byte(name))
	return time.Duration(h.Sum32()) % pollEvery
}

func (c *Conn) options(name string, o connOptions) []nats.Option {
	out := []nats.Option{
		nats.Name(strings.TrimSpace(name + " " + o.version)),
		nats.CustomInboxPrefix(Inbox(name)),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(o.wait),
		nats.ReconnectJitter(o.wait/2, 2*o.wait),
		// The default closes the connection for good after two refusals, but
		// credentials get rotated and servers misconfigured.
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(pingsOut),
		// What is published while disconnected fails at once: everything here
		// is level-triggered or spooled, and a buffer would only hide the loss.
		nats.ReconnectBufSize(-1),
		nats.DrainTimeout(drainTimeout),
		nats.ConnectHandler(func(nc *nats.Conn) { c.up(nc) }),
		nats.ReconnectHandler(func(nc *nats.Conn) { c.up(nc) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.down(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if o.local == nil { // that it does not run is told by who runs it
				c.asyncError("can not connect to NATS", err)
			}
		}),
		nats.LameDuckModeHandler(func(nc *nats.Conn) {
			c.log.Info("NATS server is shutting down, changing over", "server", nc.ConnectedUrlRedacted())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.asyncErrors.Add(1)
			c.asyncError("NATS reports an error", err)
		}),
		nats.ClosedHandler(func(*nats.Conn) { c.closed() }),
	}
	if o.local != nil {
		out = append(out, nats.InProcessServer(o.local))
	}
	if o.key.Public != "" {
		out = append(out, nats.Nkey(o.key.Public, o.key.Sign))
	}
	if o.dialer != nil {
		out = append(out, nats.SetCustomDialer(o.dialer))
	}
	return out
}

func (c *Conn) up(nc *nats.Conn) {
	url := nc.ConnectedUrlRedacted()
	c.log.Info("connected to NATS", "server", url)
	c.set(StateChange{Connected: true, URL: url, Time: time.Now()})
}

func (c *Conn) down(err error) {
	c.mu.Lock()
	url, closing := c.state.URL, c.closing
	c.mu.Unlock()
	if !closing {
		c.log.Warn("lost NATS; going on with what is known", "server", url, "err", err)
	}
	c.set(StateChange{URL: url, Err: err, Time: time.Now()})
}

// closed is unexpected unless Close was called: nothing here closes otherwise.
func (c *Conn) closed() {
	c.mu.Lock()
	closing := c.closing
	c.mu.Unlock()
	if !closing {
		c.log.Error("connection to NATS was closed for good; a restart is needed")
	}
}

func (c *Conn) set(s StateChange) {
	c.clock.reset()
	c.mu.Lock()
	c.state, c.lastErr = s, ""
	close(c.changed)
	c.changed = make(chan struct{})
	watchers := c.watchers
	c.mu.Unlock()
	for _, fn := range watchers {
		fn(s)
	}
}

// asyncError logs an error once until it changes or the state does: the same
// one may come with every attempt.
func (c *Conn) asyncError(what string, err error) {
	if err == nil {
		return
	}
	c.mu.Lock()
	same := c.lastErr == err.Error()
	c.lastErr = err.Error()
	c.mu.Unlock()
	if !same {
		c.log.Warn(what, "err", err)
	}
}

// OnStateChange calls fn at each change of the connection's state, and once now
// if it is connected. fn must not block: the next change waits for it.
func (c *Conn) OnStateChange(fn func(StateChange)) {
	c.mu.Lock()
	c.watchers = append(c.watchers[:len(c.watchers):len(c.watchers)], fn)
	state := c.state
	c.mu.Unlock()
	if state.Connected {
		fn(state)
	}
}

// Connected says whether there is a connection now.
func (c *Conn) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Connected
}

// Errors counts the errors that the server reported outside of any call, such
// as permission violations.
func (c *Conn) Errors() uint64 { return c.asyncErrors.Load() }

// watch returns the state and a channel that is closed when it changes.
func (c *Conn) watch() (StateChange, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.changed
}

// Hurry makes a connection that waits for its next attempt try at once.
func (c *Conn) Hurry() {
	if !c.Connected() {
		_ = c.nc.ForceReconnect() // fails only once it is closed
	}
}

// WaitConnected blocks until there is a connection, or ctx ends.
func (c *Conn) WaitConnected(ctx context.Context) error {
	for {
		state, changed := c.watch()
		if state.Connected {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Close sends what is pending, ends all subscriptions and closes the
// connection. It takes a few seconds at most.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	closed := c.nc.StatusChanged(nats.CLOSED)
	if err := c.nc.Drain(); err != nil {
		c.nc.Close() // not connected: nothing to drain
		return nil
	}
	select {
	case <-closed:
		return nil
	case <-time.After(drainTimeout + time.Second):
		c.nc.Close()
		return errors.New("close NATS connection: it did not drain in time")
	}
}
