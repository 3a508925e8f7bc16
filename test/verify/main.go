// SPDX-License-Identifier: Apache-2.0

// Command verify checks the rules of design.md section 4 that no compiler
// checks: who may import whom, that pure packages stay pure, that each module
// the product is built on is in real use. `make verify` runs it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() { os.Exit(run()) }

func run() int {
	packages, err := list()
	if err != nil {
		fmt.Fprintln(os.Stderr, "verify:", err)
		return 1
	}
	var wrong []string
	used := map[string]bool{}
	for _, p := range packages {
		path := strings.TrimPrefix(p.ImportPath, module)
		wrong = append(wrong, check(path, p.Imports)...)
		if forTests(path) {
			continue
		}
		for mod := range soleImporters {
			if slices.ContainsFunc(p.Imports, func(i string) bool { return i == mod || strings.HasPrefix(i, mod+"/") }) {
				used[mod] = true
			}
		}
	}
	for mod := range soleImporters {
		if !used[mod] {
			wrong = append(wrong, "no package uses "+mod+" any more")
		}
	}
	clocks, err := clockUses(pure)
	if err != nil {
		fmt.Fprintln(os.Stderr, "verify:", err)
		return 1
	}
	wrong = append(wrong, clocks...)
	slices.Sort(wrong)
	for _, w := range wrong {
		fmt.Fprintln(os.Stderr, "verify:", w)
	}
	if len(wrong) > 0 {
		return 1
	}
	fmt.Printf("import rules hold in %d packages\n", len(packages))
	return 0
}

type pkg struct {
	ImportPath string
	Imports    []string
}

// list asks the go command for all packages of the module.
func list() ([]pkg, error) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil, fmt.Errorf("go list: %w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("go list: %w", err)
	}
	var packages []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages = append(packages, p)
	}
}
