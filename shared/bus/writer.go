// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"egress-gateway.io/shared/tenant"
)

const (
	heartbeatEvery = 5 * time.Second
	compareEvery   = 5 * time.Minute // the bucket is read anew at least so often
	tombstoneFor   = 24 * time.Hour
)

// State is what a cluster wants, whole.
type State struct {
	Tenants []tenant.Tenant
	Nodes   []tenant.Node
	Network *tenant.Network
}

// SyncResult says what a Sync wrote.
type SyncResult struct {
	Written  int // records that were new or differed
	Released int // tenants that got a tombstone
	Purged   int // keys removed: nodes that are gone, tombstones past their time
	// Generation of the Ready record in force.
	Generation int64
}

// Changes is the number of keys written.
func (r SyncResult) Changes() int { return r.Written + r.Released + r.Purged }

// WriterOptions of a Writer.
type WriterOptions struct {
	// Identity names this process in its heartbeats.
	Identity string
	// Clock is time.Now if nil.
	Clock func() time.Time
	Log   *slog.Logger
}

// Writer makes the bucket egress-state say what one cluster wants.
//
// It is level-triggered: Sync compares the whole state with what the bucket
// holds, as a reader like any other sees it, and writes the difference. Two
// writers do not damage anything, but undo each other's work: only the leader
// may call Sync.
type Writer struct {
	conn    *Conn
	cluster string
	opts    WriterOptions
	watch   *watcher
	changed chan struct{}

	syncing sync.Mutex // one Sync at a time

	mu     sync.Mutex // guards the rest
	mirror mirror
	wake   chan struct{} // closed and replaced when the mirror's state changes
	absent bool          // the bucket does not exist
	want   map[string][]byte
	synced bool  // a Sync has succeeded
	last   int64 // highest generation that this writer knows of
	due    bool  // a Sync is due: one failed, or somebody else wrote
}

// mirror is what a session has read of the writer's keys.
type mirror struct {
	bucket  incarnation
	loaded  bool
	entries map[string]entry // gone ones included, for their revision
}

// NewWriter returns a Writer for a cluster. Run must run for Sync to work.
func NewWriter(conn *Conn, cluster string, opts WriterOptions) *Writer {
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	w := &Writer{conn: conn, cluster: cluster, opts: opts, changed: make(chan struct{}, 1), wake: make(chan struct{})}
	w.watch = newWatcher(conn, StateBucket, cluster+".>", opts.Log, w)
	w.watch.rebuild = compareEvery
	return w
}

// Changed receives when a Sync is due for reasons of the bus: the connection
// came back, the bucket was recreated or wiped, somebody else wrote to the
// cluster's keys. It is for one receiver.
func (w *Writer) Changed() <-chan struct{} { return w.changed }

// Run reads the cluster's keys, and sends a heartbeat every 5 s once a Sync has
// succeeded, until ctx ends. It returns ctx's error. A replica that is not the
// leader may run it to be warm.
func (w *Writer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { w.beat(ctx) })
	defer wg.Wait()
	return w.watch.run(ctx)
}

func (w *Writer) beat(ctx context.Context) {
	t := time.NewTicker(heartbeatEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		w.mu.Lock()
		due := w.synced && w.mirror.loaded
		w.mu.Unlock()
		if !due {
			continue
		}
		if err := w.Heartbeat(ctx); err != nil && ctx.Err() == nil {
			w.opts.Log.Warn("heartbeat failed", "cluster", w.cluster, "err", err)
		}
	}
}

// Heartbeat tells the gateways that the writer is alive. Run calls it. What it
// writes has to come back: a copy of the bucket that lags does not go unnoticed.
func (w *Writer) Heartbeat(ctx context.Context) error {
	h := tenant.Heartbeat{Schema: tenant.Schema, Cluster: w.cluster, Writer: w.opts.Identity, Time: w.opts.Clock().UTC()}
	revs, err := w.conn.put(ctx, StateBucket, []write{{key: tenant.HeartbeatKey(w.cluster).String(), value: tenant.Encode(h)}}, false)
	if err == nil {
		w.watch.expect(revs[0])
	}
	return err
}

// Sync makes the bucket hold exactly s, and returns once the server has
// acknowledged all of it. Run must be running. It waits for the
// bucket to be read if it was not yet, and fails at once if there is none, which
// Setup makes, or with ErrNotConnected if there is no connection. After an error nothing is known of how much was
// written: call it again when Changed says so, which it does within seconds.
//
// A record of s that is not valid, or of another cluster, is an error, and
// nothing is written. A tenant that is in the bucket and not in s is replaced by
// a tombstone, which goes a day later. The Ready record is written last, and
// only if it has to say something new.
func (w *Writer) Sync(ctx context.Context, s State) (SyncResult, error) {
	want, err := w.encode(s)
	if err != nil {
		return SyncResult{}, err
	}
	w.syncing.Lock()
	defer w.syncing.Unlock()
	res, err := w.sync(ctx, want)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.due = true
	} else {
		w.synced = true
	}
	return res, err
}

func (w *Writer) sync(ctx context.Context, want map[string][]byte) (SyncResult, error) {
	m, err := w.read(ctx, want)
	if err != nil {
		return SyncResult{}, err
	}
	writes, res := w.diff(m, want)
	if err := w.put(ctx, m, writes); err != nil {
		return res, err
	}
	ready, due := w.ready(m)
	res.Generation = ready.Generation
	if !due {
		return res, nil
	}
	w.mu.Lock()
	w.last = ready.Generation
	w.mu.Unlock()
	return res, w.put(ctx, m, []write{{key: tenant.ReadyKey(w.cluster).String(), value: tenant.Encode(ready)}})
}

// encode validates the state and returns the records by key.
func (w *Writer) encode(s State) (map[string][]byte, error) {
	out := make(map[string][]byte, len(s.Tenants)+len(s.Nodes)+1)
	var errs []error
	add := func(k tenant.Key, cluster string, record any, err error) {
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("record %s: %w", k, err))
		case cluster != w.cluster:
			errs = append(errs, fmt.Errorf("record %s: want cluster %s", k, w.cluster))
		case out[k.String()] != nil:
			errs = append(errs, fmt.Errorf("record %s stands twice", k))
		default:
			out[k.String()] = tenant.Encode(record)
		}
	}
	for _, t := range s.Tenants {
		add(tenant.TenantKey(t.Cluster, t.Name), t.Cluster, t, t.Validate())
	}
	for _, n := range s.Nodes {
		add(tenant.NodeKey(n.Cluster, n.Name), n.Cluster, n, n.Validate())
	}
	if s.Network != nil {
		add(tenant.NetworkKey(s.Network.Cluster), s.Network.Cluster, s.Network, s.Network.Validate())
	}
	return out, errors.Join(errs...)
}

// read returns a copy of what the bucket holds, and notes what is wanted from
// now on, so that writes of others can be told from ours.
func (w *Writer) read(ctx context.Context, want map[string][]byte) (mirror, error) {
	for {
		w.mu.Lock()
		if w.mirror.loaded {
			w.want, w.due = want, false
			m := w.mirror
			m.entries = maps.Clone(m.entries)
			w.mu.Unlock()
			return m, nil
		}
		wake, absent := w.wake, w.absent
		w.mu.Unlock()
		if !w.conn.Connected() {
			return mirror{}, ErrNotConnected
		}
		if absent {
			return mirror{}, fmt.Errorf("bucket %s: %w", StateBucket, errBucketMissing)
		}
		select {
		case <-ctx.Done():
			return mirror{}, fmt.Errorf("read bucket %s before writing to it: %w", StateBucket, ctx.Err())
		case <-wake:
		}
	}
}

// put writes, and takes what was acknowledged into m and into the mirror: the
// next Sync need not wait until it has come back from the server.
func (w *Writer) put(ctx context.Context, m mirror, writes []write) error {
	if len(writes) == 0 {
		return nil
	}
	revs, err := w.conn.put(ctx, StateBucket, writes, m.bucket.ttl)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.mirror.bucket.created.Equal(m.bucket.created) {
		// What was acknowledged may have gone to either bucket.
		return errors.Join(errRecreated, err)
	}
	now := w.opts.Clock()
	for i, wr := range writes {
		if revs[i] == 0 {
			continue
		}
		e := entry{key: wr.key, value: wr.value, gone: wr.purge, rev: revs[i], time: now}
		m.store(e)
		w.mirror.store(e)
		w.watch.expect(e.rev)
	}
	return err
}

// store takes a write into the mirror unless it knows a newer one.
func (m mirror) store(e entry) (news bool) {
	if old, ok := m.entries[e.key]; ok && old.rev >= e.rev {
		return false
	}
	m.entries[e.key] = e
	return true
}
