// SPDX-License-Identifier: Apache-2.0

// Command sbom writes, for each program that is delivered, which modules it is
// made of (CycloneDX JSON), and for all of them together the licences and their
// texts, which must accompany the programs. It fails for a licence that it does not
// know or that is not allowed.
//
// What a program contains is read from the program itself; the texts come from
// Go's module cache.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

func main() { os.Exit(run()) }

func run() int {
	bin := flag.String("bin", "build/bin", "where the programs are")
	out := flag.String("out", "build/sbom", "where to write")
	flag.Parse()
	programs, err := delivered(*bin)
	if err == nil {
		err = write(programs, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		return 1
	}
	return 0
}

// program is one that is delivered.
type program struct {
	binary  string // its file
	pkg     string // its main package
	version string // as --version tells
}

// delivered lists our own programs, and the NATS server of the image, which is
// not the one that the lab runs.
func delivered(bin string) ([]program, error) {
	listed, err := exec.Command("go", "list", "-f", `{{if eq .Name "main"}}{{.ImportPath}}{{end}}`, "./...").Output()
	if err != nil {
		return nil, fmt.Errorf("list our programs: %w", withOutput(err))
	}
	var out []program
	for pkg := range strings.FieldsSeq(string(listed)) {
		if strings.Contains(pkg, "/test/") {
			continue
		}
		p := program{binary: filepath.Join(bin, path.Base(pkg)), pkg: pkg}
		if strings.Contains(pkg, "/images/") {
			p.binary = filepath.Join(bin, "image", path.Base(pkg))
		}
		if p.version, err = stamped(p.binary); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// stamped asks a program of ours for its version.
func stamped(binary string) (string, error) {
	said, err := exec.Command(binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version (`make build` builds it): %w", binary, withOutput(err))
	}
	words := strings.Fields(string(said))
	if len(words) < 2 {
		return "", fmt.Errorf("%s --version says %q", binary, said)
	}
	return words[1], nil
}

// withOutput adds what a command said before it failed.
func withOutput(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}

// write writes everything, or fails after having said all that is wrong.
func write(programs []program, out string) error {
	if err := errors.Join(os.RemoveAll(out), os.MkdirAll(out, 0o755)); err != nil {
		return err
	}
	all := map[string]module{}
	users := map[string][]string{}
	var errs []error
	for _, p := range programs {
		made, err := inspect(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		file := filepath.Join(out, filepath.Base(p.binary)+".cdx.json")
		if err := writeSBOM(p, made, file); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Printf("%s: %d modules\n", file, len(made.modules))
		for _, m := range made.modules {
			all[m.id()] = m
			users[m.id()] = append(users[m.id()], filepath.Base(p.binary))
		}
	}
	errs = append(errs, writeLicenses(all, users, out))
	return errors.Join(errs...)
}
