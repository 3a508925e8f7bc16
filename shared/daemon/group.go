// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
)

// Group runs the parts of a program until the first of them fails or the
// context ends, and then waits for all of them.
//
// A part that returns, even without an error, ends the group unless the context
// has ended: parts are meant to run for ever. A panic of a part becomes an error
// with its stack, so that the others can still shut down in order.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	once   sync.Once
	err    error // of the first part that failed
}

// NewGroup returns a group and the context that its parts must obey.
func NewGroup(parent context.Context) (*Group, context.Context) {
	ctx, cancel := context.WithCancel(parent)
	return &Group{ctx: ctx, cancel: cancel}, ctx
}

// errStopped is the error of a part that returned nil of its own accord.
var errStopped = errors.New("ended without being asked to")

// Go runs a part. name stands in the error if it fails.
func (g *Group) Go(name string, run func(context.Context) error) {
	g.wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				g.fail(fmt.Errorf("%s: panic: %v\n%s", name, p, debug.Stack()))
			}
		}()
		err := run(g.ctx)
		if g.ctx.Err() != nil {
			return // asked to end: what it returns now is a consequence
		}
		if err == nil {
			err = errStopped
		}
		g.fail(fmt.Errorf("%s: %w", name, err))
	})
}

func (g *Group) fail(err error) {
	g.once.Do(func() { g.err = err })
	g.cancel()
}

// Wait waits for all parts and returns the error of the first that failed, or
// nil if they ended because the parent context did.
func (g *Group) Wait() error {
	g.wg.Wait()
	g.cancel()
	return g.err
}
