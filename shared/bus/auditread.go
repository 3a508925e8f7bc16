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
func ReadAudit(ctx context.Context, conn *Conn, filter AuditFilter, fn func(AuditEvent) error) error {
	cfg := jetstream.ConsumerConfig{
		Description:       "egress-gateway audit reader",
		DeliverPolicy:     jetstream.DeliverAllPolicy,
		AckPolicy:         jetstream.AckNonePolicy,
		FilterSubject:     filter.subject(),
		InactiveThreshold: consumerIdle,
		MemoryStorage:     true,
		Replicas:          1,
	}
	if !filter.Since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &filter.Since
	}
	cons, err := conn.consumer(ctx, AuditStream, cfg, nil)
	if isMissing(err) {
		return ErrNoAudit
	}
	if err != nil {
		return fmt.Errorf("read audit: %w", err)
	}
	if cons.CachedInfo().NumPending == 0 && !filter.Follow {
		return nil
	}
	return readEvents(ctx, cons, filter.Follow, fn)
}

func readEvents(ctx context.Context, cons jetstream.Consumer, follow bool, fn func(AuditEvent) error) error {
	iter, err := cons.Messages(jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(pullExpiry/2))
	if err != nil {
		return fmt.Errorf("read audit: %w", err)
	}
	defer iter.Stop()
	var next uint64 = 1
	for {
		m, err := iter.Next(jetstream.NextContext(ctx))
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
		e, err := DecodeEvent(m.Data())
		e.Err, e.NatsSubject, e.NatsSequence = err, m.Subject(), md.Sequence.Stream
		if err := fn(e); err != nil {
			return err
		}
		if md.NumPending == 0 && !follow {
			return nil
		}
	}
}
