// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A server that hangs is left within seconds: the regular pings would take half
// a minute.
func TestFrozenServerIsLeft(t *testing.T) {
	t.Parallel()
	first, second := startServer(t), startServer(t)
	d := &freezer{}
	cfg := first.config()
	cfg.URL = append(cfg.URL, second.config().URL...)
	c := must(Connect(t.Context(), cfg, "gw1", quiet(), WithReconnectWait(20*time.Millisecond), WithDialer(d)))
	t.Cleanup(func() { _ = c.Close() })
	eventually(t, "the connection", c.Connected)
	url := c.nc.ConnectedUrl()
	d.freeze()
	began := time.Now()
	if _, err := c.stream(within(t), "any"); err == nil {
		t.Fatal("a frozen server answered")
	}
	eventually(t, "another server", func() bool { return c.Connected() && c.nc.ConnectedUrl() != url })
	if took := time.Since(began); took > 2*(suspectAfter+probeTimeout) {
		t.Fatalf("it took %s", took)
	}
}

// freezer is a dialer whose first connection can be made to hang: nothing comes
// or goes on it any more, and nobody is told.
type freezer struct {
	mu    sync.Mutex
	first *frozenConn
}

type frozenConn struct {
	net.Conn
	frozen atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (d *freezer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	f := &frozenConn{Conn: c, closed: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.first == nil {
		d.first = f
	}
	return f, nil
}

func (d *freezer) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.first.frozen.Store(true)
}

func (c *frozenConn) Write(b []byte) (int, error) {
	if c.frozen.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *frozenConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.frozen.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *frozenConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
