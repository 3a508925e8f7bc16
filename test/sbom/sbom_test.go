// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// TestEverythingIsListed writes the real thing, twice: it is complete, its
// licences are allowed, and it is the same both times.
func TestEverythingIsListed(t *testing.T) {
	t.Chdir("../..")
	programs, err := delivered("build/bin")
	if err != nil {
		t.Fatal(err)
	}
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if err := write(programs, dir); err != nil {
			t.Fatal(err)
		}
	}
	names := map[string]bool{}
	for _, p := range programs {
		name := filepath.Base(p.binary)
		names[name] = true
		text, err := os.ReadFile(filepath.Join(first, name+".cdx.json"))
		if err != nil {
			t.Fatal(err)
		}
		again, err := os.ReadFile(filepath.Join(second, name+".cdx.json"))
		if err != nil || !bytes.Equal(text, again) {
			t.Errorf("%s: two lists of the same program differ (%v)", name, err)
		}
		var bom cdx.BOM
		if err := cdx.NewBOMDecoder(bytes.NewReader(text), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
			t.Fatal(name, err)
		}
		if bom.Metadata.Component.Version == "" {
			t.Errorf("%s has no version", name)
		}
		listed := map[string]bool{}
		for _, c := range *bom.Components {
			listed[c.Name+"@"+c.Version] = true
			if c.Licenses == nil || len(*c.Licenses) == 0 {
				t.Errorf("%s: %s has no licence", name, c.PackageURL)
			}
			if texts, err := os.ReadDir(filepath.Join(first, "licenses", c.Name+"@"+c.Version)); err != nil || len(texts) == 0 {
				t.Errorf("%s: no text of the licence of %s (%v)", name, c.PackageURL, err)
			}
		}
		info, err := buildinfo.ReadFile(p.binary)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range info.Deps {
			if !listed[d.Path+"@"+d.Version] {
				t.Errorf("%s: %s is not listed", name, d.Path)
			}
		}
		if !slices.ContainsFunc(*bom.Components, func(c cdx.Component) bool { return c.Name == standard }) {
			t.Errorf("%s: Go's own library is not listed", name)
		}
	}
	for _, want := range []string{"gateway-agent", "cluster-agent", "egressctl", "nats-server"} {
		if !names[want] {
			t.Errorf("%s is not among the programs", want)
		}
	}
}

// Each of our programs says its version, commit and the commit's date.
func TestPrograms(t *testing.T) {
	t.Chdir("../..")
	programs, err := delivered("build/bin")
	if err != nil {
		t.Fatal(err)
	}
	if exec.Command("git", "rev-parse", "HEAD").Run() != nil {
		t.Skip("this is no checkout of git: there is no commit to tell")
	}
	form := regexp.MustCompile(`^(\S+) (\S+) \(commit ([0-9a-f]{40})(?:-dirty)?, (\S+)\)\n$`)
	for _, p := range programs {
		if strings.Contains(p.pkg, "/images/") {
			continue // it has NATS's version, which its image's tag does not
		}
		said, err := exec.Command(p.binary, "--version").Output()
		if err != nil {
			t.Fatal(err)
		}
		m := form.FindStringSubmatch(string(said))
		if m == nil {
			t.Errorf("%s --version says %q", p.binary, said)
			continue
		}
		at, err := time.Parse(time.RFC3339, m[4])
		if err != nil || at.Location() != time.UTC {
			t.Errorf("%s: the date %q is no time in UTC (%v)", p.binary, m[4], err)
		}
		of, err := exec.Command("git", "show", "-s", "--format=%ct", m[3]).Output()
		if want := strconv.FormatInt(at.Unix(), 10); err != nil || strings.TrimSpace(string(of)) != want {
			t.Errorf("%s: date %s (%s), the commit's is %s (%v)", p.binary, m[4], want, of, err)
		}
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, want string }{
		{"                    Apache License\n  Version 2.0, January 2004\n http://www.apache.org/licenses/", "Apache-2.0"},
		{"Permission is hereby granted, free of charge, to any person obtaining a copy\nof this software and associated documentation files (the \"Software\")", "MIT"},
		{"# Permission to use, copy, modify, and/or distribute this\n# software for any purpose with or without fee is hereby granted", "ISC"},
		{"Redistribution and use in source and binary forms, with or without\n2. Redistributions in binary form must reproduce the above copyright notice", "BSD-2-Clause"},
		{"Redistribution and use in source and binary forms\nRedistributions in binary form must reproduce the above\n// copyright notice ... names of its contributors may be used to endorse or promote products derived from", "BSD-3-Clause"},
		{"GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007", "GPL"},
		{"GNU AFFERO GENERAL PUBLIC LICENSE\n  Version 3", "AGPL-3.0"},
		{"Mozilla Public License Version 2.0\n1.12 ... GNU General Public License, Version 2.0", "MPL-2.0"},
		{"Business Source License 1.1", "BUSL-1.1"},
		{"All rights reserved. Do what I say.", ""},
	} {
		if got := strings.Join(classify(c.text), ", "); got != c.want {
			t.Errorf("%.40q is %q, want %q", c.text, got, c.want)
		}
	}
}

// What is unknown, forbidden or missing ends it, with the file and the remedy.
func TestLicensesThatStop(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct{ file, text, want string }{
		"unknown":   {"LICENSE", "Do what I say.", "read it, and add it"},
		"forbidden": {"COPYING", "GNU GENERAL PUBLIC LICENSE Version 3", "GPL is not allowed"},
		"missing":   {"README", "MIT", "no licence in"},
	} {
		root := t.TempDir()
		below := filepath.Join(root, "a", "b")
		if err := os.MkdirAll(below, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "a", c.file), []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := licensesOf(root, []string{below}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}

func TestLicenseNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"LICENSE": true, "LICENSE.md": true, "License-MIT.txt": true, "COPYING": true, "licence": true, "UNLICENSE": true,
		"license.go": false, "LICENSES": false, "README.md": false, "copying_test.go": false,
	} {
		if got := isLicense(name); got != want {
			t.Errorf("%s is a licence: %v", name, got)
		}
	}
}
