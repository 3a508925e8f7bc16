// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// comeback is about how long it takes to see that the API server is back. There
// are six watches in each of a few replicas: that does not flood it.
const comeback = time.Second

// patient returns a ListerWatcher that waits while the API server can not be
// reached. Left to itself an informer waits longer and longer, up to a minute,
// and all owners would wait as long after an outage.
func patient(lw cache.ListerWatcherWithContext) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return reach(ctx, func() (runtime.Object, error) { return lw.ListWithContext(ctx, o) })
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return reach(ctx, func() (watch.Interface, error) { return lw.WatchWithContext(ctx, o) })
		},
	}
}

// reach calls fn again until the API server has answered it, be it with an
// error, or ctx ends.
func reach[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	for {
		v, err := fn()
		var unanswered *url.Error
		if !errors.As(err, &unanswered) || !wait(ctx, comeback/2+rand.N(comeback)) {
			return v, err
		}
	}
}
