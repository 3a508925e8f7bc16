// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// Cleanup removes all that is ours from the kernel, and the connections that
// went through it. It returns the steps that were tried, and all failures.
func Cleanup(ctx context.Context, k Kernel, f Flows) ([]plan.Step, error) {
	sight, err := k.Look(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("observe the kernel: %w", err)
	}
	have := sight.State
	steps := plan.Diff(plan.State{MarkMask: have.MarkMask}, have)
	l := NewLoop(Options{Kernel: k, Flows: f, Log: slog.New(slog.DiscardHandler), Audit: nobody{}, Sweep: func() {}})
	res := result{failures: map[string]Failure{}}
	l.apply(ctx, steps, &res)
	var errs []error
	for _, p := range res.problems {
		errs = append(errs, errors.New(p.Message))
	}
	for _, id := range sortedKeys(res.failures) {
		errs = append(errs, res.failures[id].Err)
	}
	return steps, errors.Join(errs...)
}

// nobody takes events and tells them to nobody.
type nobody struct{}

func (nobody) EmitAll([]Event) error { return nil }
