// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"os"
	"path"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// The Secret has what deploy/base takes from it, and the files where it looks.
func TestSecretFitsTheDeployment(t *testing.T) {
	t.Parallel()
	d := aDir(t)
	var secret corev1.Secret
	if err := yaml.UnmarshalStrict(must(os.ReadFile(d.file("clusters", "c1", "secret.yaml"))), &secret); err != nil {
		t.Fatal(err)
	}
	manifest, _, _ := strings.Cut(string(must(os.ReadFile("../../deploy/base/deployment.yaml"))), "\n---\n")
	var deployment appsv1.Deployment
	if err := yaml.UnmarshalStrict([]byte(manifest), &deployment); err != nil {
		t.Fatal(err)
	}
	if secret.Namespace != deployment.Namespace {
		t.Errorf("the Secret is in namespace %q, the Deployment in %q", secret.Namespace, deployment.Namespace)
	}
	pod := deployment.Spec.Template.Spec
	mount := ""
	for _, v := range pod.Volumes {
		if v.Secret == nil {
			continue
		}
		if v.Secret.SecretName != secret.Name {
			t.Errorf("the Deployment mounts Secret %q", v.Secret.SecretName)
		}
		for _, m := range pod.Containers[0].VolumeMounts {
			if m.Name == v.Name {
				mount = m.MountPath
			}
		}
	}
	files := 0
	for _, e := range pod.Containers[0].Env {
		switch {
		case e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil:
			if e.ValueFrom.SecretKeyRef.Name != secret.Name || secret.StringData[e.ValueFrom.SecretKeyRef.Key] == "" {
				t.Errorf("%s wants %v", e.Name, e.ValueFrom.SecretKeyRef)
			}
		case strings.HasPrefix(e.Name, "CLUSTER_NATS_"):
			files++
			want := string(must(os.ReadFile(d.file("clusters", "c1", path.Base(e.Value)))))
			if path.Dir(e.Value) != mount || string(secret.Data[path.Base(e.Value)]) != want {
				t.Errorf("%s is %s, which the Secret does not give", e.Name, e.Value)
			}
		}
	}
	if files != 4 {
		t.Errorf("the Deployment names %d files", files)
	}
}
