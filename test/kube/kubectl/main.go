// SPDX-License-Identifier: Apache-2.0

// Command kubectl is the unmodified kubectl of k8s.io/kubernetes, for the test
// of the quick start: its commands are those of docs/quickstart.md, word for word.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() {
	os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))
}
