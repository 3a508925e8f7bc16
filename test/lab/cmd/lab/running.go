// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/lab/namespace"
)

func down(args []string) error {
	f, name := flags("down", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	return lab.DownByName(*name)
}

func status(args []string) error {
	f, name := flags("status", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	names, err := namespace.List(*name + "-")
	if err != nil {
		return err
	}
	processes, err := lab.Processes(*name)
	if err != nil {
		return err
	}
	if len(names) == 0 && len(processes) == 0 {
		return fmt.Errorf("lab %s is not up", *name)
	}
	slices.Sort(names)
	fmt.Printf("namespaces: %s\n", strings.Join(names, " "))
	for _, p := range processes {
		fmt.Printf("%8d %s\n", p.PID, p.Command)
	}
	if len(processes) > 0 {
		fmt.Printf("logs: %s\n", filepath.Join(processes[0].Dir, "log"))
	}
	return nil
}

// label sets (KEY=VALUE) or removes (KEY-) labels of a namespace, for machines
// without kubectl.
func label(ctx context.Context, args []string) error {
	f, name := flags("label", "NAMESPACE KEY=VALUE|KEY-...")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() < 2 {
		f.Usage()
		return errors.New("label: want a namespace and labels")
	}
	labels := map[string]any{}
	for _, a := range f.Args()[1:] {
		key, value, set := strings.Cut(a, "=")
		if set {
			labels[key] = value
		} else if key, removed := strings.CutSuffix(a, "-"); removed {
			labels[key] = nil
		} else {
			return fmt.Errorf("label %q: want KEY=VALUE, or KEY- to remove it", a)
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	rc, err := lab.RESTConfigOf(*name)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Namespaces().Patch(ctx, f.Arg(0), types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}
