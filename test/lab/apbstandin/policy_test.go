// SPDX-License-Identifier: Apache-2.0

package apbstandin

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func object(name string, selector map[string]any, ips ...any) *unstructured.Unstructured {
	var hops []any
	for _, ip := range ips {
		hops = append(hops, map[string]any{"ip": ip})
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"from":     map[string]any{"namespaceSelector": selector},
			"nextHops": map[string]any{"static": hops},
		},
	}}
}

func byName(ns string) map[string]any {
	return map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": ns}}
}

func byLabel(key, value string) map[string]any {
	return map[string]any{"matchLabels": map[string]any{key: value}}
}

func space(name string, label ...string) *corev1.Namespace {
	labels := map[string]string{"kubernetes.io/metadata.name": name}
	for i := 0; i < len(label); i += 2 {
		labels[label[i]] = label[i+1]
	}
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// TestGrants walks through a story; each step sees the grants of the one before.
func TestGrants(t *testing.T) {
	grants := map[string]grant{}
	blue, red := space("blue"), space("red", "tier", "gold")
	steps := []struct {
		name       string
		policies   []*unstructured.Unstructured
		namespaces []*corev1.Namespace
		want       map[string][]string // policy -> namespaces granted
		problems   map[string]string
	}{
		{
			name:       "one policy gets what it selects",
			policies:   []*unstructured.Unstructured{object("a", byName("blue"), "192.168.99.13")},
			namespaces: []*corev1.Namespace{blue, red},
			want:       map[string][]string{"a": {"blue"}},
		}, {
			name: "a second one that wants the same fails as a whole",
			policies: []*unstructured.Unstructured{object("a", byName("blue"), "192.168.99.13"),
				object("b", map[string]any{}, "192.168.99.14")},
			namespaces: []*corev1.Namespace{blue, red},
			want:       map[string][]string{"a": {"blue"}},
			problems:   map[string]string{"b": "failed to update policy b: namespaces [blue] are already affected by another policy: a"},
		}, {
			name:       "it gets them once the first is gone",
			policies:   []*unstructured.Unstructured{object("b", map[string]any{}, "192.168.99.14")},
			namespaces: []*corev1.Namespace{blue, red},
			want:       map[string][]string{"b": {"blue", "red"}},
		}, {
			name: "a refused change leaves the old grant",
			policies: []*unstructured.Unstructured{object("b", byName("blue"), "192.168.99.14"),
				object("c", byLabel("tier", "gold"), "192.168.99.15")},
			namespaces: []*corev1.Namespace{blue, red},
			want:       map[string][]string{"b": {"blue"}, "c": {"red"}},
		}, {
			name: "c reaches for blue and keeps red",
			policies: []*unstructured.Unstructured{object("b", byName("blue"), "192.168.99.14"),
				object("c", byName("blue"), "192.168.99.15")},
			namespaces: []*corev1.Namespace{blue, red},
			want:       map[string][]string{"b": {"blue"}, "c": {"red"}},
			problems:   map[string]string{"c": "failed to update policy c: namespaces [blue] are already affected by another policy: b"},
		}, {
			name: "a hop that is no address fails",
			policies: []*unstructured.Unstructured{object("b", byName("blue"), "fd00::1:2junk%x"),
				object("c", byLabel("tier", "gold"), "192.168.99.15")},
			namespaces: []*corev1.Namespace{blue, red},
			want:       map[string][]string{"b": {"blue"}, "c": {"red"}},
			problems:   map[string]string{"b": `could not parse routing external gw annotation value "fd00::1:2junk%x"`},
		}, {
			name:       "a namespace that is gone is no one's",
			policies:   []*unstructured.Unstructured{object("c", byLabel("tier", "gold"), "192.168.99.15")},
			namespaces: []*corev1.Namespace{blue},
			want:       map[string][]string{"c": nil},
		},
	}
	for _, step := range steps {
		var policies []policy
		for _, o := range step.policies {
			policies = append(policies, parse(o))
		}
		problems := map[string]string{}
		for name, err := range grantAll(grants, policies, step.namespaces) {
			problems[name] = err.Error()
		}
		got := map[string][]string{}
		for name, g := range grants {
			got[name] = g.namespaces
		}
		if step.problems == nil {
			step.problems = map[string]string{}
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s: grants (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(step.problems, problems); diff != "" {
			t.Errorf("%s: problems (-want +got):\n%s", step.name, diff)
		}
	}
}

func TestVerdict(t *testing.T) {
	ok1, ok2 := "node1: configured external gateway IPs: 192.168.99.13", "node2: configured external gateway IPs: 192.168.99.13"
	bad := "node2: node2 failed to apply policy: no"
	for _, c := range []struct {
		messages []any
		nodes    int
		want     string
	}{
		{nil, 0, ""},
		{nil, 2, ""},
		{[]any{ok1}, 2, ""},
		{[]any{ok1, ok2}, 2, "Success"},
		{[]any{ok1, bad}, 2, "Fail"},
		{[]any{bad}, 2, "Fail"},
	} {
		o := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"messages": c.messages}}}
		if got := verdictOf(o, c.nodes); got != c.want {
			t.Errorf("%v of %d nodes: %q, want %q", c.messages, c.nodes, got, c.want)
		}
	}
}
