// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"
)

// Apply applies YAML files, or the *.yaml files of directories, and waits until
// the CRDs among them are served.
func (s *Server) Apply(ctx context.Context, paths ...string) error {
	client, err := dynamic.NewForConfig(s.Config(Admin))
	if err != nil {
		return err
	}
	for _, path := range paths {
		files := []string{path}
		if info, err := os.Stat(path); err != nil {
			return err
		} else if info.IsDir() {
			if files, err = filepath.Glob(filepath.Join(path, "*.yaml")); err != nil {
				return err
			}
		}
		for _, file := range files {
			if err := applyFile(ctx, client, file); err != nil {
				return fmt.Errorf("apply %s: %w", file, err)
			}
		}
	}
	return nil
}

func applyFile(ctx context.Context, client dynamic.Interface, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, doc := range bytes.Split(content, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(doc, &o.Object); err != nil {
			return err
		}
		if len(o.Object) == 0 {
			continue
		}
		kind := schema.FromAPIVersionAndKind(o.GetAPIVersion(), o.GetKind())
		resource := client.Resource(kind.GroupVersion().WithResource(strings.ToLower(kind.Kind) + "s"))
		target := dynamic.ResourceInterface(resource)
		if ns := o.GetNamespace(); ns != "" {
			target = resource.Namespace(ns)
		}
		if _, err := target.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "kubetest", Force: true}); err != nil {
			return err
		}
		if kind.Kind == "CustomResourceDefinition" {
			if err := awaitServed(ctx, client, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitServed waits until objects of a new kind can be listed.
func awaitServed(ctx context.Context, client dynamic.Interface, crd *unstructured.Unstructured) error {
	group, _, err := unstructured.NestedString(crd.Object, "spec", "group")
	if err != nil {
		return err
	}
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil || len(versions) == 0 {
		return fmt.Errorf("versions of %s: %w", crd.GetName(), err)
	}
	first, _ := versions[0].(map[string]any)
	resource := schema.GroupVersionResource{Group: group, Version: fmt.Sprint(first["name"]), Resource: strings.SplitN(crd.GetName(), ".", 2)[0]}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err = client.Resource(resource).List(ctx, metav1.ListOptions{Limit: 1}); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not served: %w", crd.GetName(), err)
		case <-tick.C:
		}
	}
}
