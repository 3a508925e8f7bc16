// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/cluster-agent/internal/publish"
)

// passes counts passes.
type passes struct {
	publish.Cluster
	n atomic.Int64
}

func (p *passes) Snapshot() derive.Input { p.n.Add(1); return p.Cluster.Snapshot() }

// Far more tenants than one batch, and than the pool has addresses: all get an
// answer, those at the end of the queue too, and then the loop rests.
func TestMoreThanABatch(t *testing.T) {
	w := newWorld(t)
	const asking, addresses = 230, 105
	w.pool("batch", fmt.Sprintf("10.60.0.1-10.60.0.%d", addresses), "10.61.0.0/16")
	for i := range asking {
		w.ask("batch-"+strconv.Itoa(i), "batch")
	}
	var count *passes
	begin := time.Now()
	w.start(func(c publish.Cluster) publish.Cluster { count = &passes{Cluster: c}; return count })
	w.until("everybody to have an answer", func() error {
		list, err := w.dynamic.Resource(tenantsResource()).List(w.ctx, metav1.ListOptions{})
		w.must(err)
		allocated, refused := 0, 0
		for i := range list.Items {
			o := w.convert(&list.Items[i])
			switch c := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionAllocated); {
			case c == nil:
			case c.Status == metav1.ConditionTrue:
				allocated++
			case c.Reason == "PoolExhausted":
				refused++
			}
		}
		if allocated != addresses || refused != asking-addresses {
			return fmt.Errorf("%d allocated, %d refused", allocated, refused)
		}
		return nil
	})
	t.Logf("%d answers in %s", asking, time.Since(begin))
	w.until("the loop to rest", func() error {
		before := count.n.Load()
		time.Sleep(300 * time.Millisecond)
		if n := count.n.Load() - before; n > 1 {
			return fmt.Errorf("%d passes in 300 ms", n)
		}
		return nil
	})
}
