// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"egress-gateway.io/shared/tenant"
)

const (
	spoolBytes    = 64 << 20
	memoryBytes   = 4 << 20
	publishWindow = 256
)

// AuditOptions of an Audit.
type AuditOptions struct {
	// Dir is where events wait until NATS has them. Empty means memory: they
	// are lost with the process.
	Dir string
	// Role and Name (a DNS label: the cluster's or the gateway's) are where
	// events come from. Replicas of one cluster-agent share a name, and tell
	// the same event with the same ID.
	Role Role
	Name string
	// MaxBytes bounds the spool; 64 MiB on disk and 4 MiB in memory if 0.
	MaxBytes int64
	// Clock is time.Now if nil.
	Clock func() time.Time
	Log   *slog.Logger
}

// Audit tells events to the stream EGRESS_AUDIT, each at least once, in order,
// whenever NATS can be reached.
type Audit struct {
	conn   *Conn
	opts   AuditOptions
	spool  *spool
	bootID string
	source string

	n       uint64 // events numbered; guarded by the spool
	lost    atomic.Uint64
	lastErr string // of Run only: to log each trouble once
	careful bool   // of Run only: the last batch failed
}

// NewAudit opens the spool. Events left there by an earlier life are published
// first, with the IDs they had. Call Close at the end.
func NewAudit(conn *Conn, opts AuditOptions) (*Audit, error) {
	if opts.Role != RoleCluster && opts.Role != RoleGateway {
		return nil, fmt.Errorf("audit: unknown role %q", opts.Role)
	}
	if err := tenant.ValidateLabel(opts.Name); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if opts.Clock == nil {
		opts.Clock = time.Now
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = spoolBytes
		if opts.Dir == "" {
			opts.MaxBytes = memoryBytes
		}
	}
	s, err := openSpool(opts.Dir, opts.MaxBytes)
	if err != nil {
		return nil, err
	}
	return &Audit{
		conn: conn, opts: opts, spool: s,
		bootID: rand.Text(), source: auditSource(opts.Role, opts.Name),
	}, nil
}

// Emit puts an event on the spool and returns when it is on disk; it does not
// wait for NATS. Calls at the same time share one write to disk.
func (a *Audit) Emit(e Event) error { return a.EmitAll([]Event{e}) }

// EmitAll is Emit for several events with one write to disk. Either all are
// spooled or none.
func (a *Audit) EmitAll(events []Event) error {
	data := make([][]byte, len(events))
	for i, e := range events {
		var err error
		if data[i], err = e.encodeData(); err != nil {
			return err
		}
	}
	if len(events) == 0 {
		return nil
	}
	// Numbers follow the order on the spool, whoever emits at the same time.
	return a.spool.append(func() ([][]byte, error) {
		texts := make([][]byte, len(events))
		for i, e := range events {
			var err error
			if texts[i], err = a.encode(e, data[i], a.n+uint64(i)+1); err != nil {
				return nil, err
			}
		}
		a.n += uint64(len(events))
		return texts, nil
	})
}

// encodeData checks an event and encodes its own part.
func (e Event) encodeData() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(e.Data)
	if err != nil {
		return nil, fmt.Errorf("audit event %s: %w", e.Kind, err)
	}
	if len(data) > maxEvent {
		return nil, fmt.Errorf("audit event %s: %d bytes of data; at most %d are allowed", e.Kind, len(data), maxEvent)
	}
	return data, nil
}

// encode turns an event into what the spool holds.
func (a *Audit) encode(e Event, data []byte, number uint64) ([]byte, error) {
	id := ownID(a.source, a.bootID, number)
	if e.ID != "" {
		id = a.source + "/" + e.ID
	}
	event, err := json.Marshal(cloudEvent{
		SpecVersion: "1.0", ID: id, Source: a.source, Type: eventTypePrefix + e.Kind, Subject: e.Subject,
		Time: a.opts.Clock().UTC(), DataContentType: "application/json", BootID: a.bootID, Sequence: strconv.FormatUint(number, 10), Data: data,
	})
	if err != nil {
		return nil, fmt.Errorf("audit event %s: %w", e.Kind, err)
	}
	return json.Marshal(spooled{Subject: auditSubject(e.Cluster, a.opts.Role, a.opts.Name, e.Kind), ID: id, Event: event})
}

// Pending is the number of events that NATS has not acknowledged yet.
func (a *Audit) Pending() int { return a.spool.pending() }

// Flush gives the last events of a program a moment to leave, while Run still
// runs: until all are acknowledged, NATS is away, ctx ends or limit is over. What
// does not leave stays on the spool, and leaves with the next start.
func (a *Audit) Flush(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	look := time.NewTicker(limit / 100)
	defer look.Stop()
	for a.conn.Connected() && a.Pending() > 0 {
		select {
		case <-ctx.Done():
			a.opts.Log.Info("audit events stay on the spool", "pending", a.Pending())
			return
		case <-look.C:
		}
	}
}

// Dropped counts the events that were dropped since the start because the spool
// was full or damaged. Each loss is told by an event of kind "gap".
func (a *Audit) Dropped() uint64 { return a.lost.Load() + a.spool.takeDropped() }

// Close closes the spool. Run must have returned, and no Emit may follow.
func (a *Audit) Close() error { return a.spool.close() }

// Run publishes what is spooled until ctx ends, and returns ctx's error. Without
// the stream, which Setup makes, events stay on the spool.
func (a *Audit) Run(ctx context.Context) error {
	retry := minRetry
	ensured := false
	for {
		if err := a.conn.WaitConnected(ctx); err != nil {
			return err
		}
		_, changed := a.conn.watch()
		err := a.step(ctx, &ensured)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		a.logOnce(err)
		var again <-chan time.Time
		if err != nil {
			ensured = false
			retry = min(2*retry, maxRetry)
			again = time.After(retry)
		} else {
			retry = minRetry
		}
		if err := a.wait(ctx, changed, again, &ensured); err != nil {
			return err
		}
	}
}

// wait returns when there is something to do: events, or a retry after trouble.
func (a *Audit) wait(ctx context.Context, changed <-chan struct{}, again <-chan time.Time, ensured *bool) error {
	ready := a.spool.ready
	if again != nil {
		ready = nil // there is, but it was just tried
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
		*ensured = false
	case <-again:
	case <-ready:
	}
	return nil
}

// step publishes until the spool is empty, or something fails.
func (a *Audit) step(ctx context.Context, ensured *bool) error {
	if !*ensured {
		// Without the stream nobody would answer, which tells less.
		if _, err := a.conn.stream(ctx, AuditStream); err != nil {
			return err
		}
		*ensured = true
	}
	for {
		more, err := a.publishBatch(ctx)
		if err != nil || !more {
			return err
		}
		if err := a.tellGap(); err != nil {
			return err
		}
	}
}

// publishBatch publishes the oldest events and removes those acknowledged. After
// a failure it begins with a single one: when a stream gets its new leader in the
// midst of a batch, the first of it are lost and the rest is not, and what is
// published again then stands behind what came after it.
func (a *Audit) publishBatch(ctx context.Context) (more bool, err error) {
	window := publishWindow
	if a.careful {
		window = 1
	}
	batch, err := a.spool.take(window)
	if err != nil || len(batch.texts) == 0 {
		return false, err
	}
	msgs := make([]*nats.Msg, 0, len(batch.texts))
	index := make([]int, 0, len(batch.texts)) // of msgs in the batch
	for i, text := range batch.texts {
		s, err := decodeSpooled(text)
		if err != nil {
			a.opts.Log.Error("damaged event in the audit spool is skipped", "err", err)
			a.spool.lose()
			continue
		}
		m := nats.NewMsg(s.Subject)
		m.Data = s.Event
		m.Header.Set(nats.MsgIdHdr, s.ID)
		m.Header.Set("content-type", eventMIME)
		msgs, index = append(msgs, m), append(index, i)
	}
	acks, err := a.conn.publish(ctx, msgs)
	a.careful = err != nil
	settled := len(batch.texts)
	var repeated []Repeated
	for j := range msgs {
		if j >= len(acks) || acks[j] == nil {
			settled = index[j]
			break
		}
		if acks[j].Duplicate {
			repeated = addRepeated(repeated, msgs[j].Data)
		}
	}
	if len(repeated) > 0 {
		// Before the spool forgets them: a crash in between tells it twice.
		if failed := a.Emit(Event{Kind: KindRepeated, Data: repeatedData{repeated}}); failed != nil {
			return false, failed
		}
	}
	if failed := a.spool.settle(batch, settled); failed != nil {
		return false, fmt.Errorf("audit spool: %w", failed)
	}
	if err != nil {
		return false, fmt.Errorf("publish audit events: %w", err)
	}
	return true, nil
}

// tellGap turns dropped events into an event that says so. It is called once
// NATS takes events again, so that there is one for the whole loss.
func (a *Audit) tellGap() error {
	n := a.spool.takeDropped()
	if n == 0 {
		return nil
	}
	a.opts.Log.Error("audit events were lost: the spool was full or damaged", "dropped", n)
	if err := a.Emit(Event{Kind: "gap", Data: map[string]uint64{"dropped": n}}); err != nil {
		return err
	}
	a.spool.told(n)
	a.lost.Add(n)
	return nil
}

// logOnce logs trouble when it begins, changes and ends.
func (a *Audit) logOnce(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text == a.lastErr {
		return
	}
	if a.lastErr = text; err != nil {
		a.opts.Log.Warn("audit events wait on the spool", "pending", a.Pending(), "err", err)
	} else {
		a.opts.Log.Info("audit events are published again", "pending", a.Pending())
	}
}
