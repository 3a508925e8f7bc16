// SPDX-License-Identifier: Apache-2.0

// Command kube-apiserver is the unmodified kube-apiserver of k8s.io/kubernetes.
//
// It exists because Kubernetes publishes no such binary as a Go package that
// `go install` could build: its go.mod holds replace directives.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
