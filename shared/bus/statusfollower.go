// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"egress-gateway.io/shared/tenant"
)

// statusGrace is how long a status that a new read of the bucket lacks is still
// told: gateways need a moment to notice that a bucket was recreated.
const statusGrace = 15 * time.Second

// StatusFollower follows what all gateways report.
//
// There is no Ready record here: each status stands for itself and names the
// generation that it is about. A status goes when its key is removed; one that is
// merely absent after a reconnect or from a new bucket goes 15 s later.
type StatusFollower struct {
	watch   *watcher
	opts    StatusOptions
	changed chan struct{}

	mu       sync.Mutex
	isLoaded bool
	cut      error
	fresh    map[string]bool // keys told in this session
	statuses map[string]tenant.Status
	summary  map[string]tenant.Summary
	heard    map[string]time.Time // when each summary came, by our own clock
	bad      map[string]error
	dropAt   time.Time // when what is not fresh goes; zero = nothing to drop
	problems problemSet
}

// NewStatusFollower returns a StatusFollower; Run must be called for it to do
// anything.
func NewStatusFollower(conn *Conn, opts StatusOptions) *StatusFollower {
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	f := &StatusFollower{
		opts: opts, changed: make(chan struct{}, 1), cut: ErrNotConnected,
		fresh: map[string]bool{}, statuses: map[string]tenant.Status{}, summary: map[string]tenant.Summary{}, bad: map[string]error{},
		heard: map[string]time.Time{},
	}
	f.watch = newWatcher(conn, StatusBucket, ">", opts.Log, f)
	return f
}

// Run follows the bucket until ctx ends, and returns ctx's error.
func (f *StatusFollower) Run(ctx context.Context) error { return f.watch.run(ctx) }

// Changed receives once after one or more changes of what this follower tells;
// a Summary in which only the time changed is none. It is for one receiver.
func (f *StatusFollower) Changed() <-chan struct{} { return f.changed }

// Statuses returns what the gateways say of a cluster's tenants, by the tenant's
// name, sorted by the gateway's.
func (f *StatusFollower) Statuses(cluster string) map[string][]tenant.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string][]tenant.Status{}
	for _, key := range slices.Sorted(maps.Keys(f.statuses)) {
		if s := f.statuses[key]; s.Cluster == cluster {
			out[s.Name] = append(out[s.Name], s)
		}
	}
	return out
}

// Summaries returns the gateways' reports about themselves, sorted by gateway.
func (f *StatusFollower) Summaries() []tenant.Summary {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]tenant.Summary, 0, len(f.summary))
	for _, key := range slices.Sorted(maps.Keys(f.summary)) {
		out = append(out, f.summary[key])
	}
	return out
}

// Problems returns what is wrong: no connection, no bucket, records that can
// not be read.
func (f *StatusFollower) Problems() []Problem {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.problems.list)
}

// begin implements feed.
func (f *StatusFollower) begin(incarnation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isLoaded, f.fresh = false, map[string]bool{}
	f.bad = map[string]error{}
}

// apply implements feed.
func (f *StatusFollower) apply(batch []entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := false
	for _, e := range batch {
		news = f.store(e) || news
	}
	if news {
		poke(f.changed)
	}
	f.report()
}

// store reports whether what this follower tells has changed.
func (f *StatusFollower) store(e entry) bool {
	if e.gone {
		return f.drop(e.key)
	}
	f.fresh[e.key] = true
	_, _, name, err := tenant.ParseStatusKey(e.key)
	if err == nil && name == "" {
		var s tenant.Summary
		if s, err = tenant.DecodeSummary(e.key, e.value); err == nil {
			old, known := f.summary[e.key]
			f.summary[e.key] = s
			if !known || !old.Time.Equal(s.Time) {
				f.heard[s.Gateway] = f.arrival(e)
			}
			delete(f.bad, e.key)
			return !known || !sameSummary(old, s)
		}
	} else if err == nil {
		var s tenant.Status
		if s, err = tenant.DecodeStatus(e.key, e.value); err == nil {
			old, known := f.statuses[e.key]
			f.statuses[e.key] = s
			delete(f.bad, e.key)
			return !known || old != s
		}
	}
	f.bad[e.key] = err // what was told before of this key stands
	return false
}

// arrival is when a write came. Of one that was there before us only the server
// knows.
func (f *StatusFollower) arrival(e entry) time.Time {
	now := f.opts.Clock()
	if !f.isLoaded && e.time.Before(now) {
		return e.time
	}
	return now
}

// Ages returns how long ago each gateway's last summary came.
func (f *StatusFollower) Ages() map[string]time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]time.Duration, len(f.summary))
	for _, s := range f.summary {
		out[s.Gateway] = max(f.opts.Clock().Sub(f.heard[s.Gateway]), 0)
	}
	return out
}

func sameSummary(a, b tenant.Summary) bool {
	a.Time = b.Time
	return bytes.Equal(tenant.Encode(a), tenant.Encode(b))
}

func (f *StatusFollower) drop(key string) bool {
	_, a := f.statuses[key]
	_, b := f.summary[key]
	delete(f.statuses, key)
	delete(f.heard, f.summary[key].Gateway)
	delete(f.summary, key)
	delete(f.bad, key)
	delete(f.fresh, key)
	return a || b
}

// loaded implements feed.
func (f *StatusFollower) loaded() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isLoaded, f.cut = true, nil
	f.dropAt = f.opts.Clock().Add(statusGrace)
	f.report()
}

// lost implements feed.
func (f *StatusFollower) lost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.isLoaded, f.cut = false, err
	f.report()
}

// tick implements feed.
func (f *StatusFollower) tick() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report()
	if !f.isLoaded || f.dropAt.IsZero() || f.opts.Clock().Before(f.dropAt) {
		return
	}
	f.dropAt = time.Time{}
	news := false
	for _, key := range slices.Concat(slices.Collect(maps.Keys(f.statuses)), slices.Collect(maps.Keys(f.summary))) {
		if !f.fresh[key] {
			news = f.drop(key) || news
		}
	}
	if news {
		poke(f.changed)
	}
}

// report brings Problems up to date, but not while the bucket is being read
// anew.
func (f *StatusFollower) report() {
	if !f.isLoaded && f.cut == nil {
		return
	}
	now := f.opts.Clock()
	var list []Problem
	if f.cut != nil {
		list = append(list, Problem{Since: now, Err: fmt.Errorf("cut off from bucket %s: %w", StatusBucket, f.cut)})
	}
	for _, key := range slices.Sorted(maps.Keys(f.bad)) {
		list = append(list, Problem{Key: key, Since: now, Err: f.bad[key]})
	}
	if f.problems.replace(list) {
		poke(f.changed)
	}
}
