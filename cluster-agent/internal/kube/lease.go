// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Lease says which Lease object makes a leader, and how fast.
type Lease struct {
	Namespace, Name, Identity string
	// Duration is how long others wait for a leader that is silent; the leader
	// gives up when it could not renew for Renew, and tries every Retry.
	Duration, Renew, Retry time.Duration
}

// ErrLost says that another process may be the leader now.
var ErrLost = errors.New("leadership lost: the lease could not be renewed in time")

// Lead waits until this process is the leader, and then runs lead. It returns
// nil when ctx ends, in this order: lead returns, the lease is given up. If the
// lease is lost, it waits for lead to return as well, and then returns ErrLost.
func (a *Agent) Lead(ctx context.Context, l Lease, lead func(context.Context) error) error {
	elected, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	leading := make(chan struct{})
	done := make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: l.Name},
			Client:    a.leases, LockConfig: resourcelock.ResourceLockConfig{Identity: l.Identity},
		},
		LeaseDuration: l.Duration, RenewDeadline: l.Renew, RetryPeriod: l.Retry,
		ReleaseOnCancel: true, Name: l.Name,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) {
				close(leading)
				both, cancel := context.WithCancel(ctx)
				defer cancel()
				defer context.AfterFunc(held, cancel)()
				a.opts.Log.Info("leading", "step", "lease")
				done <- lead(both)
				stop() // gives the lease up
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("leader election: %w", err)
	}
	// A process that waits gives up at once; one that leads, when lead returns.
	defer context.AfterFunc(ctx, func() {
		select {
		case <-leading:
		default:
			stop()
		}
	})()
	elector.Run(elected)
	select {
	case <-leading:
	default:
		return nil // never led
	}
	lost := elected.Err() == nil
	err = <-done
	switch {
	case ctx.Err() != nil:
		return nil
	case lost:
		return ErrLost
	}
	return err
}
