// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"egress-gateway.io/shared/tenant"
)

const (
	staleAfter    = 30 * time.Second // a heartbeat older than this is a problem
	mismatchRetry = 10 * time.Second // records and Ready disagree for so long: read anew
)

// FollowerOptions of a Follower.
type FollowerOptions struct {
	// Initial holds the views that were confirmed in an earlier life of this
	// process, as read from its own disk: Views returns them until newer ones
	// are confirmed, and older ones are refused.
	Initial map[string]View
	// Cluster limits what is read to one cluster; empty: all.
	Cluster string
	// Reader is what this reader is named after on the server, so that its
	// permissions can be limited to it; no two at once may have the same. Empty:
	// random names.
	Reader string
	// Clock is time.Now if nil.
	Clock func() time.Time
	Log   *slog.Logger
}

// Follower follows what all clusters in the bucket egress-state want.
//
// A cluster's View changes only when the records read are exactly those that
// the cluster's Ready record vouches for, that record belongs to this very
// bucket, and is not older than the one in force. Whatever else happens on the
// bus (silence, an empty, wiped, recreated or restored bucket, half a batch of
// writes, garbage) leaves the views as they are and becomes a Problem.
type Follower struct {
	watch   *watcher
	clock   func() time.Time
	log     *slog.Logger
	changed chan struct{}

	mu       sync.Mutex // guards the rest; all writes come from Run's goroutine
	views    map[string]View
	problems problemSet
	rejected map[string]uint64
	serial   uint64 // of the last view

	// The session's own state.
	epoch    string
	isLoaded bool
	cut      error // why nothing is being read now
	clusters map[string]*cluster
	garbage  map[string]error // keys that are none
	beats    map[string]beat
	started  time.Time // the silence of a writer counts from here at most
}

// cluster is what the bucket holds of one cluster, confirmed or not.
type cluster struct {
	values  map[string][]byte // covered by the digest
	keys    []string          // of values, in order; nil before they were first needed
	recs    map[string]record
	ready   *tenant.Ready
	bad     error // why ready or the heartbeat can not be read
	dirty   bool  // something changed since it was last judged
	written written

	refused *refusal  // why it was not confirmed
	since   time.Time // when it was first refused
	counted bool      // among the rejected, since then
}

// beat is the last heartbeat of a cluster, and when it came by our own clock:
// those of two machines are not compared beyond the first.
type beat struct {
	tenant.Heartbeat
	seen   time.Time
	stored time.Time       // by the server's clock
	early  bool            // it was there before us, so seen is a guess
	lags   []time.Duration // from Time to stored, of the last few
}

// NewFollower returns a Follower; Run must be called for it to do anything.
func NewFollower(conn *Conn, opts FollowerOptions) *Follower {
	f := &Follower{
		clock: opts.Clock, log: opts.Log, changed: make(chan struct{}, 1),
		views: maps.Clone(opts.Initial), beats: map[string]beat{}, cut: ErrNotConnected, rejected: map[string]uint64{},
	}
	for _, reason := range []string{rejectedUnreadable, rejectedEmpty, rejectedUnclosed, rejectedBucket, rejectedOlder, rejectedIncomplete, rejectedMismatch} {
		f.rejected[reason] = 0
	}
	if f.clock == nil {
		f.clock = time.Now
	}
	f.started = f.clock()
	if f.views == nil {
		f.views = map[string]View{}
	}
	f.begin(incarnation{})
	filter := ">"
	if opts.Cluster != "" {
		filter = opts.Cluster + ".>"
	}
	f.watch = newWatcher(conn, StateBucket, filter, opts.Log, f)
	f.watch.reader = opts.Reader
	return f
}

// Run follows the bucket until ctx ends, and returns ctx's error.
func (f *Follower) Run(ctx context.Context) error { return f.watch.run(ctx) }

// Changed receives once after one or more changes of Views (other than
// heartbeats) or Problems. It is for one receiver.
func (f *Follower) Changed() <-chan struct{} { return f.changed }

// Views returns the last confirmed view of each cluster ever seen, by name. The
// map is the caller's own, the views are read only.
func (f *Follower) Views() map[string]View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.views)
}

// Problems returns what is wrong beyond single records (which are in the
// views): no connection, no bucket, clusters whose records are not confirmed,
// silent writers, keys that are garbage.
func (f *Follower) Problems() []Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.problems.list)
}

// begin implements feed.
func (f *Follower) begin(i incarnation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch, f.isLoaded = i.epoch(), false
	f.clusters, f.garbage = map[string]*cluster{}, map[string]error{}
}

// apply implements feed.
func (f *Follower) apply(batch []entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range batch {
		// Ready closes a batch of writes: here, and not at the end of what has
		// come so far, it fits what was written. Other changes wait for the
		// next Ready record or tick, since a hash over thousands of records is
		// not worth computing between the writes of a batch.
		if c := f.store(e); c != "" && f.isLoaded {
			f.judgeCluster(c, f.clusters[c])
		}
	}
	f.report()
}

// loaded implements feed.
func (f *Follower) loaded() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isLoaded, f.cut = true, nil
	// A cluster that we know and the bucket does not is a problem to report.
	for name := range f.views {
		f.cluster(name)
	}
	f.judge()
}

// lost implements feed.
func (f *Follower) lost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isLoaded, f.cut = false, err
	f.report()
}

// tick implements feed.
func (f *Follower) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.clusters {
		if f.isLoaded && !c.since.IsZero() && f.clock().Sub(c.since) > mismatchRetry {
			c.since = f.clock()
			f.watch.refresh()
		}
	}
	f.judge()
}

func (f *Follower) cluster(name string) *cluster {
	c := f.clusters[name]
	if c == nil {
		c = &cluster{values: map[string][]byte{}, recs: map[string]record{}, dirty: true}
		f.clusters[name] = c
	}
	return c
}

// store takes one write into the session's copy of the bucket. It returns the
// cluster's name if it was its Ready record.
func (f *Follower) store(e entry) (ready string) {
	key, err := tenant.ParseKey(e.key)
	if err != nil {
		if e.gone {
			delete(f.garbage, e.key)
		} else {
			f.garbage[e.key] = err
		}
		return ""
	}
	if key.Kind == tenant.KindHeartbeat {
		f.storeHeartbeat(key, e)
		return ""
	}
	c := f.cluster(key.Cluster)
	c.dirty = true
	switch {
	case key.Kind == tenant.KindReady:
		c.storeReady(key, e)
		return key.Cluster
	case e.gone:
		c.list(e.key, false)
		delete(c.values, e.key)
		delete(c.recs, e.key)
		c.written.add(key, false)
	default:
		c.list(e.key, true)
		c.values[e.key] = e.value
		c.recs[e.key] = decodeRecord(key, e.value)
		c.written.add(key, c.recs[e.key].err != nil)
	}
	return ""
}

// list keeps keys in order, once there are any.
func (c *cluster) list(key string, there bool) {
	if c.keys == nil {
		return
	}
	switch at, known := slices.BinarySearch(c.keys, key); {
	case there && !known:
		c.keys = slices.Insert(c.keys, at, key)
	case !there && known:
		c.keys = slices.Delete(c.keys, at, at+1)
	}
}

// digest is that of all values.
func (c *cluster) digest() string {
	if c.keys == nil {
		c.keys = slices.Sorted(maps.Keys(c.values))
	}
	return tenant.DigestSorted(c.keys, c.values)
}

func (c *cluster) storeReady(key tenant.Key, e entry) {
	c.ready, c.bad = nil, nil
	if e.gone {
		return
	}
	r, err := tenant.DecodeReady(key, e.value)
	if err != nil {
		c.bad = err
		return
	}
	c.ready = &r
}

func (f *Follower) storeHeartbeat(key tenant.Key, e entry) {
	h, err := tenant.DecodeHeartbeat(key, e.value)
	if e.gone || err != nil {
		return // it will be reported as stale
	}
	if f.beats[key.Cluster].Heartbeat == h {
		return
	}
	b := f.beats[key.Cluster]
	if b.Writer != h.Writer {
		b.lags = nil // another machine
	}
	b.Heartbeat, b.seen, b.stored, b.early = h, f.clock(), e.time, !f.isLoaded
	if b.early && h.Time.Before(b.seen) {
		b.seen = h.Time
	}
	b.lags = append(b.lags[max(0, len(b.lags)-clockBeats+1):len(b.lags):len(b.lags)], e.time.Sub(h.Time))
	f.beats[key.Cluster] = b
	if v, ok := f.views[key.Cluster]; ok {
		v.Heartbeat = h
		f.views[key.Cluster] = v
	}
}

// judge confirms what can be confirmed of all clusters that changed.
func (f *Follower) judge() {
	for name, c := range f.clusters {
		if c.dirty && f.isLoaded {
			f.judgeCluster(name, c)
		}
	}
	f.report()
}

func (f *Follower) judgeCluster(name string, c *cluster) {
	c.dirty = false
	before, known := f.views[name]
	if c.refused = f.refusal(c, before); c.refused != nil {
		if c.since.IsZero() {
			c.since = f.clock()
		}
		if !c.refused.passing {
			f.rejected[c.refused.reason]++
		}
		return
	}
	c.since, c.counted = time.Time{}, false
	if known && *c.ready == before.Ready {
		c.written = written{after: before.Serial}
		return // read again after a reconnect: nothing new
	}
	var v View
	if names, only := c.written.tenants(before); only {
		v = before.after(*c.ready, names, c.recs)
	} else {
		v = newView(*c.ready, c.recs, func() map[string]record { return before.records(name) }, f.clock())
	}
	f.serial++
	v.Serial, c.written = f.serial, written{after: f.serial}
	v.Heartbeat = f.beats[name].Heartbeat
	f.views[name] = v
	f.log.Debug("state confirmed", "cluster", name, "generation", v.Ready.Generation,
		"tenants", len(v.Tenants), "nodes", len(v.Nodes), "problems", len(v.Problems))
	poke(f.changed)
}

// report brings Problems up to date, but not while the bucket is being read
// anew: what is wrong with it will show again, and has not come and gone.
func (f *Follower) report() {
	if !f.isLoaded && f.cut == nil {
		return
	}
	now := f.clock()
	var list []Problem
	add := func(key string, err error) { list = append(list, Problem{Key: key, Since: now, Err: err}) }
	if f.cut != nil {
		add("", fmt.Errorf("cut off from bucket %s: %w", StateBucket, f.cut))
	}
	if f.isLoaded {
		for _, name := range slices.Sorted(maps.Keys(f.clusters)) {
			if c := f.clusters[name]; c.refused != nil && (!c.refused.passing || now.Sub(c.since) >= pollEvery) {
				if c.refused.passing && !c.counted {
					c.counted = true
					f.rejected[c.refused.reason]++
				}
				add(tenant.ReadyKey(name).String(), c.refused.err)
				// Once confirmed, these stand in the view's own problems.
				for _, key := range slices.Sorted(maps.Keys(c.recs)) {
					if err := c.recs[key].err; err != nil {
						add(key, err)
					}
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(f.garbage)) {
			add(key, f.garbage[key])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.views)) {
		if now.Sub(later(f.beats[name].seen, f.started)) > staleAfter {
			add(tenant.HeartbeatKey(name).String(), fmt.Errorf("no heartbeat of the cluster's writer for more than %s", staleAfter))
		}
	}
	if f.problems.replace(list) {
		poke(f.changed)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
