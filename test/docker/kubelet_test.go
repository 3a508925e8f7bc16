// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"egress-gateway.io/test/lab"
)

// agentNamespace is where deploy/base puts the cluster-agent, whose Deployment
// has the same name as its container.
const agentNamespace, agentName = "egress-gateway", "cluster-agent"

// kubelet does what Deployment controller and kubelet would do for one replica
// of the cluster-agent: it runs while the Deployment wants replicas, with the
// environment and the Secret that the Deployment names.
type kubelet struct {
	w       *world
	client  kubernetes.Interface
	process *lab.Process
}

func (k *kubelet) start() {
	var err error
	k.client, err = kubernetes.NewForConfig(k.w.RESTConfig())
	k.w.must(err)
	ctx, cancel := context.WithCancel(k.w.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := k.sync(ctx); err != nil && ctx.Err() == nil {
				k.w.t.Logf("kubelet: %v", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	k.w.t.Cleanup(func() { cancel(); <-done })
}

func (k *kubelet) sync(ctx context.Context) error {
	d, err := k.client.AppsV1().Deployments(agentNamespace).Get(ctx, agentName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	running := k.process != nil && k.process.Running()
	switch wanted := d.Spec.Replicas == nil || *d.Spec.Replicas > 0; {
	case wanted && !running:
		env, err := k.environment(ctx, d.Spec.Template.Spec)
		if apierrors.IsNotFound(err) {
			return nil // a pod waits for its Secret and its ConfigMap
		}
		if err != nil {
			return err
		}
		k.process, err = k.w.StartClusterAgent(agentName, env)
		return err
	case !wanted && running:
		if err := k.process.Terminate(); err != nil {
			return err
		}
		return k.process.Wait()
	}
	return nil
}

// environment resolves the container's variables, and puts its Secrets where
// they point.
func (k *kubelet) environment(ctx context.Context, pod corev1.PodSpec) (map[string]string, error) {
	container := pod.Containers[0]
	paths, err := k.volumes(ctx, pod)
	if err != nil {
		return nil, err
	}
	// What the lab would give it, and the Deployment does not, goes.
	env := map[string]string{"CLUSTER_LEASE_NAMESPACE": agentNamespace}
	for name := range k.w.ClusterEnv(agentName) {
		if name != "CLUSTER_KUBECONFIG" {
			env[name] = ""
		}
	}
	for _, v := range container.Env {
		value, err := k.value(ctx, v)
		if err != nil {
			return nil, err
		}
		for mount, dir := range paths {
			if rest, below := strings.CutPrefix(value, mount); below && (rest == "" || rest[0] == '/') {
				value = dir + rest
			}
		}
		env[v.Name] = value
	}
	return env, nil
}

func (k *kubelet) value(ctx context.Context, v corev1.EnvVar) (string, error) {
	switch from := v.ValueFrom; {
	case from == nil:
		return v.Value, nil
	case from.ConfigMapKeyRef != nil:
		m, err := k.client.CoreV1().ConfigMaps(agentNamespace).Get(ctx, from.ConfigMapKeyRef.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return m.Data[from.ConfigMapKeyRef.Key], nil
	case from.SecretKeyRef != nil:
		s, err := k.client.CoreV1().Secrets(agentNamespace).Get(ctx, from.SecretKeyRef.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return string(s.Data[from.SecretKeyRef.Key]), nil
	case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.name":
		return agentName + "-0", nil
	}
	return "", fmt.Errorf("variable %s has a source that this kubelet does not know", v.Name)
}

// volumes makes a directory for each mount, by the path of the mount.
func (k *kubelet) volumes(ctx context.Context, pod corev1.PodSpec) (map[string]string, error) {
	paths := map[string]string{}
	for _, mount := range pod.Containers[0].VolumeMounts {
		dir := filepath.Join(filepath.Dir(k.w.Kubeconfig()), "volumes", mount.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		paths[mount.MountPath] = dir
		for _, v := range pod.Volumes {
			if v.Name != mount.Name || v.Secret == nil {
				continue
			}
			s, err := k.client.CoreV1().Secrets(agentNamespace).Get(ctx, v.Secret.SecretName, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			for name, content := range s.Data {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					return nil, err
				}
			}
		}
	}
	return paths, nil
}

// quoted quotes words for a shell.
func quoted(words ...string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(out, " ")
}
