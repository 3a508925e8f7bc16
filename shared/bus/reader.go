// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// reader is the consumer of one session, and what it has seen.
type reader struct {
	w       *watcher
	cons    jetstream.Consumer
	consume jetstream.ConsumeContext
	queue   *queue
	created time.Time // of the bucket

	target   uint64          // the first read must reach this stream sequence; 0 = the counts suffice
	reached  uint64          // highest stream sequence delivered
	initial  uint64          // messages to come before everything was read once
	received uint64          // also the consumer sequence of the last message
	pending  uint64          // messages still to come when the last one was sent
	seen     uint64          // highest stream sequence known to be behind us
	names    map[string]bool // keys that were read, gone ones included
	progress time.Time

	polls      chan pollResult
	polling    bool
	pollErrors int
	keys       uint64 // of the whole bucket at the last poll
	due        uint64 // stream sequence that must be behind us at the next poll
}

// open creates the consumer. Only this session uses it: it acknowledges nothing,
// and any message that does not follow its predecessor ends the session.
func (w *watcher) open(ctx context.Context, created time.Time) (*reader, error) {
	cons, err := w.conn.consumer(ctx, streamOf(w.bucket), jetstream.ConsumerConfig{
		Description:       "egress-gateway reader " + rand.Text(), // equal to no other, see consumer
		DeliverPolicy:     jetstream.DeliverLastPerSubjectPolicy,
		AckPolicy:         jetstream.AckNonePolicy,
		FilterSubject:     subjectOf(w.bucket, w.filter),
		InactiveThreshold: consumerIdle,
		MemoryStorage:     true,
		Replicas:          1,
	}, w.consumerName())
	if err != nil {
		return nil, fmt.Errorf("read bucket %s: %w", w.bucket, err)
	}
	r := &reader{w: w, cons: cons, queue: newQueue(), created: created, progress: time.Now(),
		names: map[string]bool{}, polls: make(chan pollResult, 1)}
	r.initial = cons.CachedInfo().NumPending
	r.pending = r.initial
	r.consume, err = cons.Consume(r.queue.push,
		jetstream.PullMaxMessages(pullBatch), jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(pullExpiry/2),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { r.queue.fail(err) }))
	if err != nil {
		return nil, fmt.Errorf("read bucket %s: %w", w.bucket, err)
	}
	return r, nil
}

// readerNames is how many names a named reader uses in turn: one may be taken by
// a consumer on a server that does not answer.
const readerNames = 4

func readerName(reader string, n int) string { return fmt.Sprintf("%s_%d", reader, n%readerNames) }

// consumerName returns what gives a consumer its name, or nil for random ones.
func (w *watcher) consumerName() func() string {
	if w.reader == "" {
		return nil
	}
	return func() string {
		w.sessions++
		return readerName(w.reader, w.sessions)
	}
}

// close ends the consumer here and, if it can be reached, on the server.
func (r *reader) close() {
	r.consume.Stop()
	if !r.w.conn.Connected() {
		return // the server forgets it after consumerIdle
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := r.w.conn.js.DeleteConsumer(ctx, streamOf(r.w.bucket), r.cons.CachedInfo().Name); err != nil {
		r.w.log.Debug("reader was not removed from the server; it will expire", "bucket", r.w.bucket, "err", err)
	}
}

// complete says whether everything that the bucket held was read. The server's
// counts can be off when keys are rewritten or removed meanwhile, hence two. In a
// cluster they are those of one copy of the bucket, which may lag behind: the
// last write that the leader told of must have come too.
func (r *reader) complete() bool { return r.counted() && r.reached >= r.target }

func (r *reader) counted() bool {
	return r.received >= r.initial || r.received > 0 && r.pending == 0
}

// mustReach demands of the first read what the leader of the bucket's servers
// has, unless that was demanded in vain: a last write that expired never comes.
func (r *reader) mustReach(info *jetstream.StreamInfo) {
	if r.w.filter == ">" && info.Config.Replicas > 1 && r.w.lagging < maxLagging {
		r.target = info.State.LastSeq
	}
}

// take returns what has arrived since. With an error the entries before it.
func (r *reader) take() ([]entry, error) {
	msgs, failed := r.queue.take()
	batch := make([]entry, 0, len(msgs))
	for _, m := range msgs {
		key, ok := keyOf(r.w.bucket, m.Subject())
		md, err := m.Metadata()
		if !ok || err != nil || md.Stream != streamOf(r.w.bucket) {
			// Whoever may create consumers can have any stream's messages sent
			// to any subject. What is not ours is not read.
			r.w.log.Warn("message of another stream refused", "bucket", r.w.bucket, "subject", m.Subject())
			continue
		}
		if md.Sequence.Consumer != r.received+1 {
			return batch, errGap
		}
		r.received, r.pending = md.Sequence.Consumer, md.NumPending
		r.seen = max(r.seen, md.Sequence.Stream)
		r.reached = max(r.reached, md.Sequence.Stream)
		r.progress = time.Now()
		r.names[key] = true
		e := entry{key: key, rev: md.Sequence.Stream, time: md.Timestamp, gone: gone(m.Headers())}
		if !e.gone {
			e.value = m.Data()
		}
		batch = append(batch, e)
	}
	return batch, failed
}

// queue hands messages from the library's goroutine to the session's, so that
// the latter can take all that have arrived at once.
type queue struct {
	ready chan struct{}
	mu    sync.Mutex
	msgs  []jetstream.Msg
	err   error
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

func (q *queue) push(m jetstream.Msg) {
	q.mu.Lock()
	q.msgs = append(q.msgs, m)
	q.mu.Unlock()
	poke(q.ready)
}

func (q *queue) fail(err error) {
	q.mu.Lock()
	q.err = err
	q.mu.Unlock()
	poke(q.ready)
}

func (q *queue) take() ([]jetstream.Msg, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	msgs, err := q.msgs, q.err
	q.msgs, q.err = nil, nil
	return msgs, err
}

// poke sends on a channel of capacity 1 unless a signal is pending already.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func drainSignal(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// optionalTimer never fires if its duration is 0.
type optionalTimer struct {
	c <-chan time.Time
	t *time.Timer
}

func newOptionalTimer(d time.Duration) optionalTimer {
	if d <= 0 {
		return optionalTimer{}
	}
	t := time.NewTimer(d)
	return optionalTimer{c: t.C, t: t}
}

func (o optionalTimer) stop() {
	if o.t != nil {
		o.t.Stop()
	}
}
