// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	sigsyaml "sigs.k8s.io/yaml"
)

// The kinds of OVN-Kubernetes that egress-gateway touches, written from the
// facts about them (not copied): routes by policy, and EgressIP, which excludes
// them.
//
//go:embed crds/*.yaml
var ovnCRDs embed.FS

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// applyManifests applies OVN's CRDs and the manifests of the options, and
// returns once every CRD is served.
func (l *Lab) applyManifests(ctx context.Context) error {
	var objects []*unstructured.Unstructured
	own, err := fs.Glob(ovnCRDs, "crds/*.yaml")
	if err != nil {
		return err
	}
	for _, name := range own {
		content, err := ovnCRDs.ReadFile(name)
		if err != nil {
			return err
		}
		if objects, err = decode(objects, name, content); err != nil {
			return err
		}
	}
	for _, path := range l.opts.Manifests {
		if objects, err = decodePath(objects, path); err != nil {
			return err
		}
	}
	return l.Apply(ctx, objects...)
}

// Apply applies objects on the server's side, as the field manager "lab": CRDs
// first, then what is left once they are served.
func (l *Lab) Apply(ctx context.Context, objects ...*unstructured.Unstructured) error {
	var crds, others []*unstructured.Unstructured
	for _, o := range objects {
		if o.GetKind() == "CustomResourceDefinition" {
			crds = append(crds, o)
		} else {
			others = append(others, o)
		}
	}
	for _, crd := range crds {
		if err := apply(ctx, l.dynamic.Resource(crdResource), crd); err != nil {
			return err
		}
	}
	for _, crd := range crds {
		if err := l.awaitEstablished(ctx, crd.GetName()); err != nil {
			return err
		}
	}
	if len(others) == 0 {
		return nil
	}
	client, err := discovery.NewDiscoveryClientForConfig(l.RESTConfig())
	if err != nil {
		return fmt.Errorf("apply manifests: %w", err)
	}
	groups, err := restmapper.GetAPIGroupResources(client)
	if err != nil {
		return fmt.Errorf("apply manifests: %w", err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	for _, o := range others {
		gvk := o.GroupVersionKind()
		mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		var resource dynamic.ResourceInterface = l.dynamic.Resource(mapping.Resource)
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			resource = l.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace())
		}
		if err := apply(ctx, resource, o); err != nil {
			return err
		}
	}
	return nil
}

// ApplyYAML applies all objects of a YAML text.
func (l *Lab) ApplyYAML(ctx context.Context, text string) error {
	objects, err := decode(nil, "manifest", []byte(text))
	if err != nil {
		return err
	}
	return l.Apply(ctx, objects...)
}

func apply(ctx context.Context, resource dynamic.ResourceInterface, o *unstructured.Unstructured) error {
	_, err := resource.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "lab", Force: true})
	if err != nil {
		return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

func (l *Lab) awaitEstablished(ctx context.Context, name string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		crd, err := l.dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("wait for CRD %s: %w", name, err)
		}
		// Absent, or null, until the server first looked at the object.
		conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
		for _, c := range conditions {
			if c, ok := c.(map[string]any); ok && c["type"] == "Established" && c["status"] == "True" {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for CRD %s: %w", name, ctx.Err())
		case <-tick.C:
		}
	}
}

func decodePath(objects []*unstructured.Unstructured, path string) ([]*unstructured.Unstructured, error) {
	files := []string{path}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*.yaml")); err != nil {
			return nil, fmt.Errorf("manifests: %w", err)
		}
	}
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		if objects, err = decode(objects, f, content); err != nil {
			return nil, err
		}
	}
	return objects, nil
}

// decode appends the objects of a YAML text; empty documents are passed over.
func decode(objects []*unstructured.Unstructured, name string, content []byte) ([]*unstructured.Unstructured, error) {
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		o := &unstructured.Unstructured{}
		if err := sigsyaml.Unmarshal(document, &o.Object); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}
