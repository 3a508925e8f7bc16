// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// composition is what a program is made of.
type composition struct {
	goVersion string
	modules   []module // Go's own library among them, sorted
}

// module is a module in the version that a program contains.
type module struct {
	path, version string
	sum           string // h1:..., of go.sum; empty for Go's own library
	licenses      []string
	files         []string // of the licences, and notices
}

func (m module) id() string { return m.path + "@" + m.version }

// standard is how vulnerability databases name Go's own library.
const standard = "stdlib"

// inspect reads from a program which modules it contains, and finds their
// licences.
func inspect(p program) (composition, error) {
	info, err := buildinfo.ReadFile(p.binary)
	if err != nil {
		return composition{}, fmt.Errorf("%w; `make build` builds it", err)
	}
	dirs, err := packageDirs(p)
	if err != nil {
		return composition{}, err
	}
	out := composition{goVersion: info.GoVersion}
	var errs []error
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		m := module{path: d.Path, version: d.Version, sum: d.Sum}
		found, known := dirs[m.id()]
		if !known {
			errs = append(errs, fmt.Errorf("%s contains %s, which its packages do not come from now: build it anew", p.binary, m.id()))
			continue
		}
		if m.licenses, m.files, err = licensesOf(found.root, found.packages); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.id(), err))
		}
		out.modules = append(out.modules, m)
	}
	std := module{path: standard, version: strings.TrimPrefix(info.GoVersion, "go")}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return composition{}, fmt.Errorf("go env GOROOT: %w", withOutput(err))
	}
	if std.licenses, std.files, err = licensesOf(strings.TrimSpace(string(root)), nil); err != nil {
		errs = append(errs, err)
	}
	out.modules = append(out.modules, std)
	slices.SortFunc(out.modules, func(a, b module) int { return strings.Compare(a.id(), b.id()) })
	return out, errors.Join(errs...)
}

// found is where the packages of a module lie that a program needs.
type found struct {
	root     string
	packages []string
}

// packageDirs returns them by module@version.
func packageDirs(p program) (map[string]found, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=Dir,Module,Standard", p.pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages of %s: %w", p.pkg, withOutput(err))
	}
	out := map[string]found{}
	for dec := json.NewDecoder(strings.NewReader(string(text))); ; {
		var listed struct {
			Dir      string
			Standard bool
			Module   *struct{ Path, Version, Dir string }
		}
		if err := dec.Decode(&listed); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		if m := listed.Module; m != nil && m.Version != "" {
			f := out[m.Path+"@"+m.Version]
			f.root, f.packages = m.Dir, append(f.packages, listed.Dir)
			out[m.Path+"@"+m.Version] = f
		}
	}
}

// licensesOf reads the licences that cover packages of a module: those of its
// root, and those in the directories of the packages and on the way there.
func licensesOf(root string, packages []string) (ids, files []string, err error) {
	dirs := map[string]bool{root: true}
	for _, dir := range packages {
		for ; len(dir) > len(root); dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
	}
	all := map[string]bool{}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			file := filepath.Join(dir, e.Name())
			license, notice := isLicense(e.Name()), isNotice(e.Name())
			if e.IsDir() || !license && !notice {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, nil, err
			}
			files = append(files, file)
			if notice {
				continue
			}
			in := classify(string(text))
			if len(in) == 0 {
				return nil, nil, fmt.Errorf("%s is of no licence that is known here: read it, and add it to test/sbom/license.go or replace the module", file)
			}
			for _, id := range in {
				if !allowed[id] {
					return nil, nil, fmt.Errorf("%s: the licence %s is not allowed in what is delivered: replace the module", file, id)
				}
				all[id] = true
			}
		}
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("no licence in %s: without one nothing may be delivered; replace the module", root)
	}
	return slices.Sorted(maps.Keys(all)), files, nil
}
