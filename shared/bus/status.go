// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// StatusOptions of a StatusWriter or a StatusFollower.
type StatusOptions struct {
	// Clock is time.Now if nil.
	Clock func() time.Time
	Log   *slog.Logger
}

// StatusWriter makes the bucket egress-status say what one gateway reports.
//
// It reads no record, which a gateway needs no permission for: it remembers what
// it wrote, forgets that whenever the connection or the bucket changes (and once
// more a few minutes later), and then asks the server for the names of its keys
// only.
type StatusWriter struct {
	conn    *Conn
	gateway string
	opts    StatusOptions
	changed chan struct{}

	syncing sync.Mutex // one Sync at a time

	mu      sync.Mutex
	bucket  incarnation
	lastSeq uint64            // the bucket held at least so much
	written map[string][]byte // what the bucket holds of ours; nil = not known
	failed  bool              // the last Sync failed
	keys    uint64            // of all gateways, at the last look
	doubted time.Time         // when to write everything again; zero = never
}

// NewStatusWriter returns a StatusWriter for a gateway. Run must run for it to
// notice that the bucket or the connection changed.
func NewStatusWriter(conn *Conn, gateway string, opts StatusOptions) *StatusWriter {
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	return &StatusWriter{conn: conn, gateway: gateway, opts: opts, changed: make(chan struct{}, 1)}
}

// Changed receives when a Sync is due for reasons of the bus. It is for one
// receiver.
func (w *StatusWriter) Changed() <-chan struct{} { return w.changed }

// Run watches the connection and the bucket's identity until ctx ends, and
// returns ctx's error.
func (w *StatusWriter) Run(ctx context.Context) error {
	t := time.NewTicker(w.conn.untilPoll())
	defer t.Stop()
	for {
		state, changed := w.conn.watch()
		if state.Connected {
			w.check(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			w.forget()
			// A server that was frozen reads what was sent to it when it wakes
			// up, however old that is then, and puts it over what was written
			// since by way of another server.
			w.mu.Lock()
			w.doubted = w.opts.Clock().Add(compareEvery)
			w.mu.Unlock()
		case <-t.C:
			t.Reset(w.conn.untilPoll())
			w.mu.Lock()
			due := !w.doubted.IsZero() && w.opts.Clock().After(w.doubted)
			if due {
				w.doubted = time.Time{}
			}
			w.mu.Unlock()
			if due {
				w.forget()
			}
		}
	}
}

// check compares the bucket with the one that was written to.
func (w *StatusWriter) check(ctx context.Context) {
	stream, err := w.conn.stream(ctx, streamOf(StatusBucket))
	w.mu.Lock()
	known, bucket, lastSeq, failed := w.written != nil, w.bucket, w.lastSeq, w.failed
	w.mu.Unlock()
	switch {
	case isMissing(err):
		w.forget()
	case err != nil:
		return // silence is no change
	case !stream.CachedInfo().Created.Equal(bucket.created) || stream.CachedInfo().State.LastSeq < lastSeq:
		w.forget()
	case !known || failed:
		poke(w.changed)
	default:
		w.look(ctx, stream)
	}
}

// look asks for the names of our keys when the bucket has fewer keys than a
// moment ago, which is usual; that ours are gone is not. Whoever may write to the
// bucket can have all of it erased.
func (w *StatusWriter) look(ctx context.Context, stream jetstream.Stream) {
	keys := stream.CachedInfo().State.NumSubjects
	w.mu.Lock()
	fewer := keys < max(w.keys, uint64(len(w.written)))
	w.keys = keys
	w.mu.Unlock()
	if !fewer {
		return
	}
	info, err := w.names(ctx, stream)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.keys = keys + 1 // again
		return
	}
	for key := range w.written {
		if _, there := info.State.Subjects[subjectOf(StatusBucket, key)]; !there {
			delete(w.written, key)
			poke(w.changed)
		}
	}
}

// names returns the bucket's account with the names of our keys.
func (w *StatusWriter) names(ctx context.Context, stream jetstream.Stream) (*jetstream.StreamInfo, error) {
	return request(ctx, w.conn, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		return stream.Info(ctx, jetstream.WithSubjectFilter(subjectOf(StatusBucket, w.gateway+".>")))
	})
}

// forget makes the next Sync write everything.
func (w *StatusWriter) forget() {
	w.mu.Lock()
	w.written = nil
	w.mu.Unlock()
	poke(w.changed)
}

// Sync makes the bucket hold exactly these records under the gateway's prefix
// (keys of tenant.StatusKey and tenant.SummaryKey) and returns once the server
// has acknowledged all. It fails at once if there is no
// bucket, which Setup makes, or with ErrNotConnected if there is no connection. After an error
// call it again when Changed says so.
func (w *StatusWriter) Sync(ctx context.Context, want map[string][]byte) (SyncResult, error) {
	for key := range want {
		if !strings.HasPrefix(key, w.gateway+".") {
			return SyncResult{}, fmt.Errorf("status key %q is not of gateway %s", key, w.gateway)
		}
	}
	w.syncing.Lock()
	defer w.syncing.Unlock()
	res, err := w.sync(ctx, want)
	w.mu.Lock()
	w.failed = err != nil
	w.mu.Unlock()
	return res, err
}

// Renew is Sync for one record, when all others are as the last Sync left them.
// It fails if that is not known any more, and a Sync of everything is due.
func (w *StatusWriter) Renew(ctx context.Context, key string, record []byte) error {
	if !strings.HasPrefix(key, w.gateway+".") {
		return fmt.Errorf("status key %q is not of gateway %s", key, w.gateway)
	}
	w.syncing.Lock()
	defer w.syncing.Unlock()
	w.mu.Lock()
	old, bucket, known := w.written[key], w.bucket, w.written != nil && !w.failed
	w.mu.Unlock()
	if !known {
		return errRecreated
	}
	if old != nil && bytes.Equal(old, record) {
		return nil
	}
	err := w.put(ctx, []write{{key: key, value: record}}, bucket)
	w.mu.Lock()
	w.failed = err != nil
	w.mu.Unlock()
	return err
}

func (w *StatusWriter) sync(ctx context.Context, want map[string][]byte) (SyncResult, error) {
	if err := w.learn(ctx); err != nil {
		return SyncResult{}, err
	}
	w.mu.Lock()
	known, bucket := w.written != nil, w.bucket
	writes, res := w.differences(want)
	w.mu.Unlock()
	if !known {
		return SyncResult{}, errRecreated // just now; all again
	}
	if len(writes) == 0 {
		return res, nil
	}
	return res, w.put(ctx, writes, bucket)
}

// put writes, and remembers what the bucket then holds.
func (w *StatusWriter) put(ctx context.Context, writes []write, bucket incarnation) error {
	revs, err := w.conn.put(ctx, StatusBucket, writes, bucket.ttl)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.written == nil || !w.bucket.created.Equal(bucket.created) {
		return errors.Join(err, errRecreated) // meanwhile; all again
	}
	for i, wr := range writes {
		switch {
		case revs[i] == 0:
			w.written[wr.key] = nil // unknown now, and equal to no record
		case wr.purge:
			delete(w.written, wr.key)
		default:
			w.written[wr.key] = wr.value
		}
		w.lastSeq = max(w.lastSeq, revs[i])
	}
	return err
}

// differences returns what has to be written, by key. Mostly it is one of
// thousands of records. w.mu is held.
func (w *StatusWriter) differences(want map[string][]byte) (writes []write, res SyncResult) {
	same := 0
	for key, value := range want {
		old, ok := w.written[key]
		if ok {
			same++
		}
		if !ok || !bytes.Equal(old, value) {
			writes = append(writes, write{key: key, value: value})
		}
	}
	res.Written = len(writes)
	if same < len(w.written) {
		for key := range w.written {
			if _, ok := want[key]; !ok {
				writes = append(writes, write{key: key, purge: true})
			}
		}
	}
	res.Purged = len(writes) - res.Written
	byKey := func(a, b write) int { return strings.Compare(a.key, b.key) }
	slices.SortFunc(writes[:res.Written], byKey)
	slices.SortFunc(writes[res.Written:], byKey)
	return writes, res
}

// learn asks for the names of our keys in the bucket, unless it is known what it
// holds. The values are unknown then, and equal to no record.
func (w *StatusWriter) learn(ctx context.Context) error {
	w.mu.Lock()
	known := w.written != nil
	w.mu.Unlock()
	if known {
		return nil
	}
	if !w.conn.Connected() {
		return ErrNotConnected
	}
	stream, err := w.conn.stream(ctx, streamOf(StatusBucket))
	if err != nil {
		return err
	}
	info, err := w.names(ctx, stream)
	if err != nil {
		return fmt.Errorf("list keys of %s in bucket %s: %w", w.gateway, StatusBucket, err)
	}
	have := make(map[string][]byte, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		if key, ok := keyOf(StatusBucket, subject); ok {
			have[key] = nil
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bucket = incarnation{created: info.Created, ttl: info.Config.AllowMsgTTL}
	w.written, w.lastSeq = have, info.State.LastSeq
	return nil
}
