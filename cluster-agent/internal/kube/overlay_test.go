// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
)

func object(name, uid, version string) *v1alpha1.EgressTenant {
	return &v1alpha1.EgressTenant{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid), ResourceVersion: version}}
}

func versions(list []*v1alpha1.EgressTenant) string {
	var out []string
	for _, o := range list {
		out = append(out, o.Name+"@"+o.ResourceVersion)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// Our own writes are seen at once, until the cache has caught up with them.
func TestOverlay(t *testing.T) {
	now := time.Unix(0, 0)
	o := newOverlay[*v1alpha1.EgressTenant](func() time.Time { return now })
	cache := []*v1alpha1.EgressTenant{object("a", "1", "10"), object("b", "2", "9")}
	expect := func(what, want string) {
		t.Helper()
		if got := versions(o.merge(cache)); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("no writes", "a@10 b@9")
	o.put(object("a", "1", "12"))
	o.put(object("c", "3", "100"))
	o.drop("b", "2")
	expect("an update, a creation and a deletion", "a@12 c@100")
	cache = []*v1alpha1.EgressTenant{object("a", "1", "9"), object("b", "2", "9")}
	expect("versions are numbers", "a@12 c@100")
	cache = []*v1alpha1.EgressTenant{object("a", "1", "13"), object("c", "3", "100"), object("b", "4", "14")}
	expect("the cache has caught up, and b is another one", "a@13 b@14 c@100")
	cache = cache[:1]
	expect("what the cache has shown once is its own business", "a@13")
	o.put(object("d", "5", "20"))
	o.gone("d", "5")
	expect("the cache saw it come and go", "a@13")
	o.put(object("e", "6", "21"))
	now = now.Add(overlayLife + time.Second)
	expect("the cache never shows it", "a@13")
}
