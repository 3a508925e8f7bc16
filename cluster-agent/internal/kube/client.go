// SPDX-License-Identifier: Apache-2.0

// Package kube is the Kubernetes side of the cluster-agent: caches of what it
// watches, its writes, events and leader election. It is the only package that
// imports client-go.
//
// Types are those of the API; what the rest of the program needs of other
// people's objects is put into the plain types of package derive.
package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	eventsv1 "k8s.io/client-go/kubernetes/typed/events/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/kube/ovn"
)

// FieldManager owns the fields that the cluster-agent applies. It must never
// change: what another name applied would stay for ever.
const FieldManager = "egress-cluster-agent"

// callTimeout limits each single request.
const callTimeout = 10 * time.Second

// Config returns how to reach the API server: by a kubeconfig file, or, if the
// path is empty, as a pod of the cluster.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		if cfg, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("not running in a pod: set CLUSTER_KUBECONFIG to a kubeconfig file")
		}
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes configuration: %w", err)
	}
	// No limit of our own: the API server has fair queues, and the default of 5
	// requests a second would stretch a thousand tenants over minutes.
	cfg.QPS = -1
	cfg.UserAgent = userAgent
	return cfg, nil
}

// clients are the typed ways to the API server.
type clients struct {
	own, ovn *rest.RESTClient
	core     *corev1.CoreV1Client
	events   *eventsv1.EventsV1Client
	leases   *coordinationv1.CoordinationV1Client
	metadata metadata.Interface
	scheme   *runtime.Scheme
}

func newClients(cfg *rest.Config) (*clients, error) {
	c := &clients{scheme: runtime.NewScheme()}
	if err := errors.Join(v1alpha1.AddToScheme(c.scheme), ovn.AddToScheme(c.scheme)); err != nil {
		return nil, err
	}
	var errs [6]error
	c.own, errs[0] = c.custom(cfg, v1alpha1.GroupVersion())
	c.ovn, errs[1] = c.custom(cfg, ovn.GroupVersion())
	builtin := rest.CopyConfig(cfg)
	builtin.ContentType = runtime.ContentTypeProtobuf
	builtin.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c.core, errs[2] = corev1.NewForConfig(builtin)
	c.events, errs[3] = eventsv1.NewForConfig(builtin)
	c.leases, errs[4] = coordinationv1.NewForConfig(builtin)
	c.metadata, errs[5] = metadata.NewForConfig(cfg)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	return c, nil
}

// custom returns a client for a group of custom resources.
func (c *clients) custom(cfg *rest.Config, gv schema.GroupVersion) (*rest.RESTClient, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.GroupVersion, cfg.APIPath = &gv, "/apis"
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(c.scheme).WithoutConversion()
	return rest.RESTClientFor(cfg)
}

// serves says whether the API server serves a resource of the client's group.
func serves(ctx context.Context, c *rest.RESTClient, gv schema.GroupVersion, resource string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var list metav1.APIResourceList
	raw, err := c.Get().AbsPath("/apis", gv.Group, gv.Version).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err == nil {
		err = decodeJSON(raw, &list)
	}
	if err != nil {
		return false, fmt.Errorf("discover %s: %w", gv, err)
	}
	for _, r := range list.APIResources {
		if r.Name == resource {
			return true, nil
		}
	}
	return false, nil
}
