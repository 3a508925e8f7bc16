// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// putWindow is how many writes wait for their acknowledgement at once.
const putWindow = 1000

// write is one change of a key.
type write struct {
	key   string
	value []byte
	purge bool // remove the key and its history
}

// put writes to a bucket and waits for every acknowledgement. It returns the
// revision of each write, 0 for those that failed, and the first error. ttl says
// whether the bucket lets the markers of purged keys expire.
func (c *Conn) put(ctx context.Context, bucket string, writes []write, ttl bool) ([]uint64, error) {
	revs := make([]uint64, 0, len(writes))
	for len(writes) > 0 {
		n := min(len(writes), putWindow)
		batch, err := c.putWindow(ctx, bucket, writes[:n], ttl)
		revs = append(revs, batch...)
		if err != nil {
			return append(revs, make([]uint64, len(writes)-n)...), err
		}
		writes = writes[n:]
	}
	return revs, nil
}

func (c *Conn) putWindow(ctx context.Context, bucket string, writes []write, ttl bool) ([]uint64, error) {
	msgs := make([]*nats.Msg, len(writes))
	for i, w := range writes {
		msgs[i] = w.message(bucket, ttl)
	}
	acks, err := c.publish(ctx, msgs)
	revs := make([]uint64, len(writes))
	for i, a := range acks {
		if a != nil {
			revs[i] = a.Sequence
		}
	}
	if err != nil {
		return revs, fmt.Errorf("write to bucket %s: %w", bucket, err)
	}
	return revs, nil
}

func (w write) message(bucket string, ttl bool) *nats.Msg {
	m := nats.NewMsg(subjectOf(bucket, w.key))
	if !w.purge {
		m.Data = w.value
		return m
	}
	m.Header.Set(operationHeader, "PURGE")
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	if ttl {
		m.Header.Set(jetstream.MsgTTLHeader, markerTTL.String())
	}
	return m
}

// publish sends messages to JetStream in their order and waits for their
// acknowledgements. acks[i] is nil if message i was not acknowledged; err is the
// first error.
func (c *Conn) publish(ctx context.Context, msgs []*nats.Msg) (acks []*jetstream.PubAck, err error) {
	if !c.Connected() {
		return nil, ErrNotConnected
	}
	acks = make([]*jetstream.PubAck, len(msgs))
	futures := make([]jetstream.PubAckFuture, 0, len(msgs))
	for _, m := range msgs {
		f, failed := c.js.PublishMsgAsync(m, jetstream.WithRetryAttempts(0))
		if failed != nil {
			err = failed
			break
		}
		futures = append(futures, f)
	}
	call, cancel := context.WithTimeout(ctx, callTimeout+time.Second)
	defer cancel()
	go c.suspect(call)
	for i, f := range futures {
		select {
		case acks[i] = <-f.Ok():
		case failed := <-f.Err():
			err = errors.Join(err, firstOf(err, failed))
		case <-call.Done():
			return acks, errors.Join(err, call.Err())
		}
	}
	return acks, err
}

// firstOf returns failed if it is the first failure: a thousand equal ones help
// nobody.
func firstOf(err, failed error) error {
	if err != nil {
		return nil
	}
	return failed
}
