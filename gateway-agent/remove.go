// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"time"

	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
)

// runCleanup removes everything that is ours from the kernel, in the same safe
// order in which the daemon removes tenants, and the disk copy. Sysctls stay:
// others may rely on them by now.
func runCleanup(c Config, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("cleanup", flag.ContinueOnError)
	force := f.Bool("force", false, "also while the daemon runs")
	if err := parseFlags(f, args); err != nil {
		return err
	}
	store, err := reconcile.OpenStore(c.StateDir)
	if err != nil {
		return err
	}
	unlock, err := store.Lock()
	switch {
	case err == nil:
		defer unlock()
	case errors.Is(err, reconcile.ErrRunning) && !*force:
		return fmt.Errorf("%s: %w; it would put everything back. Stop it first, or use --force", c.StateDir, err)
	case !errors.Is(err, reconcile.ErrRunning):
		return err
	}
	k, err := kernel.New(c.host(), c.kernelOptions(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	defer k.Close()
	conns, err := flows.Open()
	if err != nil {
		return fmt.Errorf("connection tracking: %w", err)
	}
	defer conns.Close()
	steps, err := reconcile.Cleanup(context.Background(), kernelAdapter{k}, flowsAdapter{conns})
	for _, s := range steps {
		fmt.Fprintln(stdout, s)
	}
	if err != nil {
		return fmt.Errorf("not all could be removed: %w", err)
	}
	if err := store.Remove(); err != nil {
		return fmt.Errorf("remove the disk copy: %w", err)
	}
	fmt.Fprintf(stdout, "removed: %d steps; nothing of ours is left in the kernel, nor a disk copy in %s\n", len(steps), c.StateDir)
	return nil
}

// confirmWait is how long the daemon gets to see a confirmation.
const confirmWait = 20 * time.Second

// runConfirm lets go of the held tenants: of those that the disk copy shows now,
// and of no others.
func runConfirm(c Config, args []string, stdout io.Writer) error {
	if err := noArgs(args); err != nil {
		return err
	}
	store, err := reconcile.OpenStore(c.StateDir)
	if err != nil {
		return err
	}
	loaded, err := store.Load()
	if err != nil {
		return err
	}
	if loaded.Corrupt != nil {
		return fmt.Errorf("%s: %w", c.StateDir, loaded.Corrupt)
	}
	held := loaded.Memory.HeldRefs()
	if len(held) == 0 {
		fmt.Fprintln(stdout, "no tenant is held; nothing to confirm")
		return nil
	}
	for _, r := range held {
		e, _ := loaded.Memory.Entry(r)
		fmt.Fprintf(stdout, "letting go of %s (%s)\n", r, joinAddrs(e.Record.EgressIPs))
	}
	if err := store.RequestConfirm(loaded.Memory); err != nil {
		return err
	}
	running, err := store.Locked()
	if err != nil {
		return err
	}
	if !running {
		fmt.Fprintln(stdout, "the daemon is not running; they go when it starts")
		return nil
	}
	return awaitConfirmed(store, stdout)
}

// awaitConfirmed waits until the daemon has carried out the request.
func awaitConfirmed(store *reconcile.Store, stdout io.Writer) error {
	look := time.NewTicker(confirmWait / 100)
	defer look.Stop()
	late := time.NewTimer(confirmWait)
	defer late.Stop()
	for store.ConfirmPending() {
		select {
		case <-look.C:
		case <-late.C:
			return fmt.Errorf("the daemon has not taken the confirmation in %s; it will as soon as it makes a pass (see its log)", confirmWait)
		}
	}
	fmt.Fprintln(stdout, "done")
	return nil
}

// describeSteps is what a person would type, one line each.
func describeSteps(steps []plan.Step) []string {
	out := make([]string, len(steps))
	for i, s := range steps {
		out[i] = s.String()
	}
	return out
}
