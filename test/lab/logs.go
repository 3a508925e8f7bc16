// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"path/filepath"
)

// EndsOfLogs returns the ends of the agents' logs of the lab in dir, for the
// report of a test that fails.
func EndsOfLogs(dir string) []string {
	files, err := filepath.Glob(filepath.Join(dir, "log", "*agent*"))
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			out = append(out, err.Error())
			continue
		}
		const keep = 6000
		out = append(out, fmt.Sprintf("end of %s:\n%s", filepath.Base(file), b[max(0, len(b)-keep):]))
	}
	return out
}
