// SPDX-License-Identifier: Apache-2.0

package apbstandin

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	reportWorkers  = 4
	clusterManager = "cluster-manager"
	failureText    = "failed to apply policy"
)

// reporter writes the policies' status. Each policy is written by one worker at
// a time.
type reporter struct {
	client dynamic.ResourceInterface
	lister cache.GenericLister
	log    *slog.Logger
	queue  workqueue.TypedRateLimitingInterface[string]

	mu     sync.Mutex
	wanted map[string]map[string]string          // policy -> node -> message
	newest map[string]*unstructured.Unstructured // what our last write returned: the lister may lag behind it
}

func newReporter(client dynamic.ResourceInterface, lister cache.GenericLister, log *slog.Logger) *reporter {
	return &reporter{
		client: client, lister: lister, log: log,
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, time.Second)),
		newest: map[string]*unstructured.Unstructured{},
	}
}

// want sets what all policies' status shall say, and has the workers look at
// those whose status does not.
func (r *reporter) want(messages map[string]map[string]string) {
	r.mu.Lock()
	r.wanted = messages
	for name := range r.newest {
		if messages[name] == nil {
			delete(r.newest, name)
		}
	}
	r.mu.Unlock()
	for name, want := range messages {
		if o := r.current(name); o != nil && !settled(o, want) {
			r.queue.Add(name)
		}
	}
}

func (r *reporter) work(ctx context.Context) {
	defer context.AfterFunc(ctx, r.queue.ShutDown)()
	for {
		name, shutdown := r.queue.Get()
		if shutdown {
			return
		}
		err := r.report(ctx, name)
		if err != nil && ctx.Err() == nil {
			r.log.Warn("status not written", "policy", name, "err", err)
			r.queue.AddRateLimited(name)
		} else {
			r.queue.Forget(name)
		}
		r.queue.Done(name)
	}
}

// report writes what the status lacks: first the nodes' messages, then the
// verdict.
func (r *reporter) report(ctx context.Context, name string) error {
	r.mu.Lock()
	want := r.wanted[name]
	r.mu.Unlock()
	o := r.current(name)
	if o == nil || want == nil {
		return nil
	}
	stale := staleReporters(o, want)
	for _, node := range slices.Concat(slices.Sorted(maps.Keys(want)), stale) {
		status := map[string]any{}
		if message, alive := want[node]; alive {
			if slices.Contains(messagesOf(o), message) {
				continue
			}
			status["lastTransitionTime"] = time.Now().UTC().Format(time.RFC3339)
			status["messages"] = []any{message}
		}
		var err error
		if o, err = r.apply(ctx, name, node, status); o == nil || err != nil {
			return err
		}
	}
	status, verdict := map[string]any{}, verdictOf(o, len(want))
	if current, _, _ := unstructured.NestedString(o.Object, "status", "status"); current == verdict {
		return nil
	}
	if verdict != "" {
		status["lastTransitionTime"] = time.Now().UTC().Format(time.RFC3339)
		status["status"] = verdict
	}
	_, err := r.apply(ctx, name, clusterManager, status)
	return err
}

// apply returns nil for a policy that is gone.
func (r *reporter) apply(ctx context.Context, name, manager string, status map[string]any) (*unstructured.Unstructured, error) {
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.ovn.org/v1", "kind": "AdminPolicyBasedExternalRoute",
		"metadata": map[string]any{"name": name}, "status": status,
	}}
	written, err := r.client.ApplyStatus(ctx, name, o, metav1.ApplyOptions{FieldManager: manager, Force: true})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("apply as %s: %w", manager, err)
	}
	r.mu.Lock()
	r.newest[name] = written
	r.mu.Unlock()
	return written, nil
}

// current returns the newest version known, or nil.
func (r *reporter) current(name string) *unstructured.Unstructured {
	listed, err := r.lister.Get(name)
	if err != nil {
		return nil // gone
	}
	o, ok := listed.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.newest[name]; w != nil && w.GetUID() == o.GetUID() && version(w) > version(o) {
		return w
	}
	return o
}

func version(o *unstructured.Unstructured) uint64 {
	v, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return v
}

func messagesOf(o *unstructured.Unstructured) []string {
	messages, _, _ := unstructured.NestedStringSlice(o.Object, "status", "messages")
	return messages
}

// settled tells whether the status says exactly what it shall.
func settled(o *unstructured.Unstructured, want map[string]string) bool {
	have := messagesOf(o)
	if len(have) != len(want) {
		return false
	}
	for _, m := range want {
		if !slices.Contains(have, m) {
			return false
		}
	}
	current, _, _ := unstructured.NestedString(o.Object, "status", "status")
	return current == verdictOf(o, len(want))
}

// staleReporters are nodes that are gone but still have a message.
func staleReporters(o *unstructured.Unstructured, want map[string]string) []string {
	var stale []string
	for _, m := range messagesOf(o) {
		node, _, _ := strings.Cut(m, ":")
		if _, alive := want[node]; !alive {
			stale = append(stale, node)
		}
	}
	return stale
}

// verdictOf is cluster-manager's rule: one failure fails, all nodes' messages
// succeed, and until then nothing is said.
func verdictOf(o *unstructured.Unstructured, nodes int) string {
	messages := messagesOf(o)
	for _, m := range messages {
		if strings.Contains(m, failureText) {
			return "Fail"
		}
	}
	if nodes > 0 && len(messages) >= nodes {
		return "Success"
	}
	return ""
}
