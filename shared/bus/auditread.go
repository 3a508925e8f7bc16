// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// AuditFilter chooses events; empty fields match all.
type AuditFilter struct {
	Cluster string
	Role    Role
	Name    string
	Kind    string
	// Since leaves out events that the server stored earlier.
	Since time.Time
	// Follow goes on with events to come until ctx ends.
	Follow bool
}

func (f AuditFilter) subject() string {
	if f.Cluster == "" && f.Role == "" && f.Name == "" && f.Kind == "" {
		return auditPrefix + ".>" // whatever is no event included
	}
	token := func(s string) string {
		if s == "" {
			return "*"
		}
		return s
	}
	return auditPrefix + "." + token(f.Cluster) + "." + token(string(f.Role)) + "." + token(f.Name) + "." + token(f.Kind)
}

// ErrNoAudit says that this NATS server has no audit.
var ErrNoAudit = errors.New("there is no stream " + AuditStream + "; `egressctl setup` makes it")

// Genuine says why an event can not be what its subject says: the server lets
// each agent publish to its own subjects only, but nobody checks the content.
func (e AuditEvent) Genuine() error {
	if e.Err != nil {
		return e.Err
	}
	rest, ok := strings.CutPrefix(e.NatsSubject, auditPrefix+".")
	tokens := strings.Split(rest, ".")
	if !ok || len(tokens) != 4 {
		return fmt.Errorf("subject %s: want %s.<cluster>.<ca|gw>.<name>.<kind>", e.NatsSubject, auditPrefix)
	}
	role, name, kind := Role(tokens[1]), tokens[2], tokens[3]
	if source := auditSource(role, name); e.Source != source {
		return fmt.Errorf("subject %s, but source %s", e.NatsSubject, e.Source)
	}
	if e.Kind != kind {
		return fmt.Errorf("subject %s, but kind %s", e.NatsSubject, e.Kind)
	}
	return nil
}

// ReadAudit calls fn for each event that matches, oldest first, and returns at
// the end of the stream, or with fn's first error. With Follow it returns ctx's
// error. A message that is no event is given with Err set.
//
// It goes on by way of another server when the one that it reads from ends, and
// when that one's copy of the stream lacks what the leader has.
func ReadAudit(ctx context.Context, conn *Conn, filter AuditFilter, fn func(AuditEvent) error) error {
	r := &auditReader{conn: conn, filter: filter, fn: fn}
	if err := r.count(ctx); err != nil {
		return err
	}
	for {
		before := r.last
		err := r.read(ctx)
		switch {
		case err == nil, ctx.Err() != nil, r.failed != nil:
			return err
		case r.last > before:
			r.vain = 0
		}
		if r.vain++; r.vain > maxVain {
			return err
		}
	}
}

const (
	maxVain    = 3               // attempts in a row that may fail without an event
	lagTimeout = 2 * time.Second // how long a copy may take for what the leader has
)

// auditReader is one reading of the stream, by several consumers if need be.
type auditReader struct {
	conn   *Conn
	filter AuditFilter
	fn     func(AuditEvent) error
	failed error // of fn

	want uint64 // matching events that the leader had at first; 0 = not known
	got  uint64
	last uint64 // stream sequence of the last one
	vain int    // attempts in a row without one
}

// count asks the leader how many events match. With a time it can not tell.
func (r *auditReader) count(ctx context.Context) error {
	stream, err := r.conn.stream(ctx, AuditStream)
	if isMissing(err) {
		return ErrNoAudit
	}
	if err != nil || !r.filter.Since.IsZero() || stream.CachedInfo().Config.Replicas < 2 {
		return err
	}
	info, err := request(ctx, r.conn, repeated(repeatLookup, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		return stream.Info(ctx, jetstream.WithSubjectFilter(r.filter.subject()))
	}))
	if err != nil {
		return fmt.Errorf("read audit: %w", err)
	}
	for _, n := range info.State.Subjects {
		r.want += n
	}
	return nil
}

// read reads on with a new consumer. It returns nil at the end of the stream.
func (r *auditReader) read(ctx context.Context) error {
	cfg := jetstream.ConsumerConfig{
		Description:       "egress-gateway audit reader",
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		AckPolicy:         jetstream.AckNonePolicy,
		FilterSubject:     r.filter.subject(),
		InactiveThreshold: consumerIdle,
		MemoryStorage:     true,
		Replicas:          1,
	}
	switch {
	case r.last > 0:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.last+1
	case !r.filter.Since.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &r.filter.Since
	}
	cons, err := r.conn.consumer(ctx, AuditStream, cfg, nil)
	if err != nil {
		return fmt.Errorf("read audit: %w", err)
	}
	if cons.CachedInfo().NumPending == 0 && !r.filter.Follow && r.complete() {
		return nil
	}
	return r.readEvents(ctx, cons)
}

// complete says whether nothing is known to be missing. Events that expired
// meanwhile are missing for good: a reader that looks in vain gives up.
func (r *auditReader) complete() bool { return r.got >= r.want || r.vain == maxVain }

func (r *auditReader) readEvents(ctx context.Context, cons jetstream.Consumer) error {
	iter, err := cons.Messages(jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(pullExpiry/2))
	if err != nil {
		return fmt.Errorf("read audit: %w", err)
	}
	defer iter.Stop()
	var next uint64 = 1
	for {
		m, err := r.next(ctx, iter)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read audit: %w", err)
		}
		md, err := m.Metadata()
		if err != nil || md.Stream != AuditStream {
			continue // not of this stream, whoever sent it here
		}
		if md.Sequence.Consumer != next {
			return fmt.Errorf("read audit: %w", errGap)
		}
		next++
		r.got, r.last = r.got+1, md.Sequence.Stream
		e, err := DecodeEvent(m.Data())
		e.Err, e.NatsSubject, e.NatsSequence = err, m.Subject(), md.Sequence.Stream
		if r.failed = r.fn(e); r.failed != nil {
			return r.failed
		}
		if md.NumPending == 0 && !r.filter.Follow && r.complete() {
			return nil
		}
	}
}

// next waits for a message; not for long where one has to be there.
func (r *auditReader) next(ctx context.Context, iter jetstream.MessagesContext) (jetstream.Msg, error) {
	if r.filter.Follow || r.want == 0 {
		return iter.Next(jetstream.NextContext(ctx))
	}
	wait, cancel := context.WithTimeout(ctx, lagTimeout)
	defer cancel()
	m, err := iter.Next(jetstream.NextContext(wait))
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return nil, errLagging
	}
	return m, err
}
