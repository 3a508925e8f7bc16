// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	pollEvery      = time.Second      // how often a bucket's identity is checked
	stallAfter     = 5 * time.Second  // a first read that makes no progress for so long begins anew
	consumerIdle   = 30 * time.Second // the server forgets a reader that is gone after so long
	pullExpiry     = 10 * time.Second // the server says it is alive twice as often
	pullBatch      = 1000
	minRetry       = 20 * time.Millisecond
	maxRetry       = time.Second
	missingRetry   = 250 * time.Millisecond
	maxPollErrors  = 3
	maxLagging     = 2 // sessions in a row that may end because a copy lags
	streamPrefix   = "KV_"
	subjectsOfKeys = "$KV."
)

// Why a session of a watcher ends.
var (
	errBucketMissing = errors.New("it does not exist; `egressctl setup` makes it")
	errRecreated     = errors.New("the bucket was recreated")
	errWiped         = errors.New("the bucket lost its last writes")
	errShrunk        = errors.New("keys vanished from the bucket without a trace")
	errDeaf          = errors.New("writes to the bucket did not arrive")
	errGap           = errors.New("messages got lost on the way")
	errStalled       = errors.New("reading the bucket made no progress")
	errLagging       = errors.New("this copy of the bucket lacks its last writes")
	errRefresh       = errors.New("refresh") // asked for by its own feed
)

// entry is one write to a bucket.
type entry struct {
	key   string
	value []byte // nil if gone
	gone  bool   // the key was deleted or purged, or has expired
	rev   uint64
	time  time.Time // when the server stored it
}

// incarnation identifies a bucket: one that is recreated under the same name is
// another one.
type incarnation struct {
	created time.Time
	ttl     bool // keys may have a time to live
}

// epoch is the form that Ready records carry.
func (i incarnation) epoch() string { return i.created.UTC().Format(time.RFC3339Nano) }

// feed receives what a watcher reads. All calls come from one goroutine.
type feed interface {
	// begin starts a session: everything will be told from scratch, and what
	// was told in earlier sessions may be void.
	begin(incarnation)
	// apply tells writes in their order, a key's later writes superseding its
	// earlier ones.
	apply([]entry)
	// loaded follows the last entry that the bucket held when the session
	// began; a key that was written meanwhile may still follow.
	loaded()
	// lost says that a session ended or could not begin, and why.
	lost(error)
	// tick comes about once a second whatever happens.
	tick()
}

// watcher reads a bucket, or the keys of it that match a filter, for ever.
//
// It never resumes. A session reads the last value of every key, then follows
// the writes. It ends, and the next one begins from scratch, when the connection
// changes, the bucket's creation time does, its sequence or its number of keys
// falls, writes that the bucket has do not arrive, or a message is missing from
// the reader's own count.
// A plain consumer is used rather than the library's ordered ones, because those
// resume by themselves, at a position that a new bucket may not have reached.
type watcher struct {
	conn    *Conn
	bucket  string
	filter  string // ">" or a prefix of keys with ">"
	log     *slog.Logger
	feed    feed
	rebuild time.Duration // a new session at least so often; 0 = not for age
	reader  string        // its consumers on the server are named after it; empty: random names

	told     bool // that the bucket is missing
	lagging  int  // sessions in a row that ended with errLagging
	sessions int  // that gave their consumer a name
	kick     chan struct{}
	expected atomic.Uint64 // a sequence that is known to exist and match the filter
}

func newWatcher(conn *Conn, bucket, filter string, log *slog.Logger, f feed) *watcher {
	return &watcher{conn: conn, bucket: bucket, filter: filter, log: log, feed: f, kick: make(chan struct{}, 1)}
}

// refresh makes a new session begin soon.
func (w *watcher) refresh() { poke(w.kick) }

// expect makes the session end if sequence seq does not arrive within two polls.
func (w *watcher) expect(seq uint64) {
	for {
		old := w.expected.Load()
		if seq <= old || w.expected.CompareAndSwap(old, seq) {
			return
		}
	}
}

// run returns ctx's error when ctx ends, and nothing else.
func (w *watcher) run(ctx context.Context) error {
	retry := minRetry
	for {
		if !w.conn.Connected() {
			w.feed.lost(ErrNotConnected)
			if err := w.waitConnected(ctx); err != nil {
				return err
			}
		}
		loaded, err := w.session(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errRefresh) || errors.Is(err, errShrunk) {
			continue // nothing is wrong, or not yet
		}
		w.log.Debug("reading the bucket begins anew", "bucket", w.bucket, "err", err)
		w.feed.lost(err)
		switch {
		case loaded:
			retry = minRetry
		case isMissing(err):
			retry = missingRetry
			if !w.told {
				w.log.Warn("waiting for a bucket", "bucket", w.bucket, "err", err)
			}
			w.told = true
		default:
			retry = min(2*retry, maxRetry)
		}
		w.pause(ctx, retry)
	}
}

// waitConnected goes on ticking meanwhile.
func (w *watcher) waitConnected(ctx context.Context) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		state, changed := w.conn.watch()
		if state.Connected {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tick.C:
			w.feed.tick()
		}
	}
}

func (w *watcher) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-w.kick:
	case <-t.C:
		w.feed.tick()
	}
}

// session reads the bucket until something ends it. loaded says whether it got
// so far as to have read everything once.
func (w *watcher) session(ctx context.Context) (loaded bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	state, changed := w.conn.watch()
	if !state.Connected {
		return false, ErrNotConnected
	}
	drainSignal(w.kick) // what it asked for begins now
	w.expected.Store(0)
	stream, err := w.conn.stream(ctx, streamOf(w.bucket))
	if err != nil {
		return false, err
	}
	info := stream.CachedInfo()
	r, err := w.open(ctx, info.Created)
	if err != nil {
		return false, err
	}
	defer r.close()
	w.told = false
	w.feed.begin(incarnation{created: info.Created, ttl: info.Config.AllowMsgTTL})
	r.seen, r.keys = info.State.LastSeq, info.State.NumSubjects
	r.mustReach(info)
	return w.follow(ctx, r, stream, changed)
}

// follow is the life of a session.
func (w *watcher) follow(ctx context.Context, r *reader, stream jetstream.Stream, changed <-chan struct{}) (loaded bool, err error) {
	tick := time.NewTicker(w.conn.untilPoll())
	defer tick.Stop()
	age := newOptionalTimer(w.rebuild)
	defer age.stop()
	for {
		if !loaded && r.complete() {
			loaded = true
			if r.target > 0 {
				w.lagging = 0
			}
			w.feed.loaded()
		}
		select {
		case <-ctx.Done():
			return loaded, ctx.Err()
		case <-changed:
			return loaded, ErrNotConnected
		case <-w.kick:
			return loaded, errRefresh
		case <-age.c:
			return loaded, errRefresh
		case <-r.queue.ready:
			batch, err := r.take()
			if len(batch) > 0 {
				w.feed.apply(batch)
			}
			if err != nil {
				return loaded, err
			}
		case p := <-r.polls:
			if err := w.judge(r, p); err != nil {
				return loaded, err
			}
		case <-tick.C:
			tick.Reset(w.conn.untilPoll())
			w.feed.tick()
			w.poll(ctx, r, stream)
			if !loaded && time.Since(r.progress) > stallAfter {
				return false, w.stalled(r)
			}
		}
	}
}

// stalled says why a first read does not end.
func (w *watcher) stalled(r *reader) error {
	if !r.counted() {
		return errStalled
	}
	w.lagging++
	return errLagging
}

// pollResult is a bucket's account of itself, and what was known when it was
// asked for.
type pollResult struct {
	info *jetstream.StreamInfo
	err  error
	seen uint64
	keys int
}

// poll asks the bucket for its account; the answer comes on r.polls. At most one
// question is under way.
func (w *watcher) poll(ctx context.Context, r *reader, stream jetstream.Stream) {
	if r.polling {
		return
	}
	r.polling = true
	p := pollResult{seen: r.seen, keys: len(r.names)}
	go func() {
		asked := time.Now()
		p.info, p.err = request(ctx, w.conn, func(ctx context.Context) (*jetstream.StreamInfo, error) { return stream.Info(ctx) })
		if p.err == nil && w.bucket == StateBucket { // another bucket may be led by another server
			w.conn.clock.add(asked, p.info.TimeStamp, time.Now())
		}
		r.polls <- p // has room for the one
	}()
}

// judge decides from a bucket's account whether the session still hears
// everything.
func (w *watcher) judge(r *reader, p pollResult) error {
	r.polling = false
	if p.err != nil {
		r.pollErrors++
		if isMissing(p.err) || r.pollErrors >= maxPollErrors {
			return p.err
		}
		return nil
	}
	r.pollErrors = 0
	state := p.info.State
	switch {
	case !p.info.Created.Equal(r.created):
		return errRecreated
	case state.LastSeq < p.seen:
		return errWiped
	case state.NumSubjects < max(r.keys, uint64(p.keys)):
		// Purged by an administrator, which readers are not told; or markers
		// expired, and reading anew costs little.
		return errShrunk
	case r.seen < r.due:
		// It was there a whole poll ago, and is not here yet.
		return errDeaf
	}
	r.keys = state.NumSubjects
	r.due = w.expected.Load()
	if w.filter == ">" {
		r.due = max(r.due, state.LastSeq)
	}
	return nil
}

func streamOf(bucket string) string { return streamPrefix + bucket }

func subjectOf(bucket, key string) string { return subjectsOfKeys + bucket + "." + key }

// gone says whether the headers of a message mean that its key was removed.
func gone(h nats.Header) bool {
	switch h.Get(operationHeader) {
	case "DEL", "PURGE":
		return true
	}
	return h.Get(markerHeader) != ""
}

const (
	operationHeader = "KV-Operation"
	markerHeader    = "Nats-Marker-Reason"
)

func keyOf(bucket, subject string) (string, bool) {
	return strings.CutPrefix(subject, subjectOf(bucket, ""))
}

func isMissing(err error) bool { return errors.Is(err, errBucketMissing) }
