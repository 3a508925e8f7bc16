// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

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
