// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// overlay holds our own writes until the cache shows them, so that a pass never
// sees the world as it was before the last one. It is safe for concurrent use.
type overlay[T metav1.Object] struct {
	clock func() time.Time
	mu    sync.Mutex
	items map[string]written[T]
}

type written[T metav1.Object] struct {
	object  T
	uid     types.UID
	version uint64
	deleted bool
	at      time.Time
}

// overlayLife limits how long a write is believed that the cache never shows,
// for instance since somebody deleted the object at once.
const overlayLife = 10 * time.Second

func newOverlay[T metav1.Object](clock func() time.Time) *overlay[T] {
	return &overlay[T]{clock: clock, items: map[string]written[T]{}}
}

// put notes the result of a write.
func (o *overlay[T]) put(obj T) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.items[obj.GetName()] = written[T]{object: obj, uid: obj.GetUID(), version: versionOf(obj), at: o.clock()}
}

// drop notes that we deleted an object.
func (o *overlay[T]) drop(name string, uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.items[name] = written[T]{uid: uid, deleted: true, at: o.clock()}
}

// gone notes that the cache saw an object's end.
func (o *overlay[T]) gone(name string, uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w, ok := o.items[name]; ok && w.uid == uid {
		delete(o.items, name)
	}
}

// merge returns the cache's objects, with our newer writes in their place.
func (o *overlay[T]) merge(cached []T) []T {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.items) == 0 {
		return cached
	}
	out := make([]T, 0, len(cached)+len(o.items))
	seen := make(map[string]bool, len(o.items))
	for _, obj := range cached {
		w, ok := o.items[obj.GetName()]
		seen[obj.GetName()] = ok
		switch {
		case !ok:
			out = append(out, obj)
		case w.deleted && w.uid == obj.GetUID():
			// the cache has not seen it go yet
		case !w.deleted && w.version > versionOf(obj):
			out = append(out, w.object)
		default:
			delete(o.items, obj.GetName())
			out = append(out, obj)
		}
	}
	for name, w := range o.items {
		switch {
		case seen[name]:
		case w.deleted, o.clock().Sub(w.at) > overlayLife:
			delete(o.items, name)
		default:
			out = append(out, w.object)
		}
	}
	return out
}

// versionOf returns a resource version as the number that it is.
func versionOf(obj metav1.Object) uint64 {
	v, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return v
}

func decodeJSON(raw []byte, v any) error { return json.Unmarshal(raw, v) }
