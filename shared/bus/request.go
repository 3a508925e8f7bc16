// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// How long the first try of a question waits for its answer.
const (
	repeatLookup   = time.Second
	repeatConsumer = 2 * time.Second
)

// errNoAnswer is what a missing permission looks like from here: the server
// tells the connection (which logs it), and not the request.
var errNoAnswer = fmt.Errorf("NATS did not answer within %s; does it lack JetStream, a permission, or a majority of its cluster?", callTimeout)

// request runs one request to the server. It is bounded by time, and by the
// connection that it goes over: what is under way when that breaks will never
// be answered. Its errors wrap ctx's own only if ctx has ended.
func request[T any](ctx context.Context, c *Conn, send func(context.Context) (T, error)) (T, error) {
	var zero T
	state, changed := c.watch()
	if !state.Connected {
		return zero, ErrNotConnected
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	go c.suspect(call)
	go func() {
		select {
		case <-call.Done():
		case <-changed:
			cancel()
		}
	}()
	v, err := send(call)
	switch {
	case err == nil:
		return v, nil
	case ctx.Err() != nil:
		return zero, ctx.Err()
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return zero, errBucketMissing
	case errors.Is(call.Err(), context.Canceled):
		return zero, ErrNotConnected
	case call.Err() != nil, errors.Is(err, context.DeadlineExceeded):
		return zero, errNoAnswer
	}
	return zero, err
}

// repeated asks again when there is no answer, waiting twice as long each time: a
// group of servers that has no leader just now answers what came meanwhile never,
// not late. It is for questions that do no harm when asked twice.
func repeated[T any](first time.Duration, ask func(context.Context) (T, error)) func(context.Context) (T, error) {
	return func(ctx context.Context) (T, error) {
		for wait := first; ; wait *= 2 {
			try, cancel := context.WithTimeout(ctx, wait)
			v, err := ask(try)
			unanswered := try.Err() != nil
			cancel()
			if err == nil || ctx.Err() != nil || !unanswered {
				return v, err
			}
		}
	}
}

// stream looks a stream up.
func (c *Conn) stream(ctx context.Context, name string) (jetstream.Stream, error) {
	s, err := request(ctx, c, repeated(repeatLookup, func(ctx context.Context) (jetstream.Stream, error) {
		return c.js.Stream(ctx, name)
	}))
	if err != nil {
		return nil, fmt.Errorf("look up stream %s: %w", name, err)
	}
	return s, nil
}

// consumer creates a consumer. One that was given to a server which is gone
// answers never, so another one is made; the server forgets the first.
//
// name is called for the name of each; nil means random ones. A consumer of that
// name which an earlier session has left is replaced: it would go on where that
// session ended. The server knows it by its description.
func (c *Conn) consumer(ctx context.Context, stream string, cfg jetstream.ConsumerConfig, name func() string) (jetstream.Consumer, error) {
	return request(ctx, c, repeated(repeatConsumer, func(ctx context.Context) (jetstream.Consumer, error) {
		if name == nil {
			return c.js.CreateConsumer(ctx, stream, cfg)
		}
		cfg.Name = name()
		cons, err := c.js.CreateConsumer(ctx, stream, cfg)
		if !errors.Is(err, jetstream.ErrConsumerExists) {
			return cons, err
		}
		if err := c.js.DeleteConsumer(ctx, stream, cfg.Name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, fmt.Errorf("remove consumer %s of an earlier session: %w", cfg.Name, err)
		}
		return c.js.CreateConsumer(ctx, stream, cfg)
	}))
}
