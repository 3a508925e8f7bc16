// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// writeSBOM writes what a program is made of. Nothing in it depends on when or
// where it is written: two of the same program are the same.
func writeSBOM(p program, made composition, file string) error {
	binary, err := os.ReadFile(p.binary)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(binary)
	name := filepath.Base(p.binary)
	root := cdx.Component{
		BOMRef: "program:" + name, Type: cdx.ComponentTypeApplication, Name: name, Version: p.version,
		Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(digest[:])}},
	}
	root.Licenses = &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}}
	bom := cdx.NewBOM()
	bom.SerialNumber = serialNumber(digest)
	bom.Metadata = &cdx.Metadata{
		Component:  &root,
		Properties: &[]cdx.Property{{Name: "egress-gateway:go", Value: made.goVersion}},
	}
	var components []cdx.Component
	var uses []string
	for _, m := range made.modules {
		c, err := m.component()
		if err != nil {
			return err
		}
		components = append(components, c)
		uses = append(uses, c.BOMRef)
	}
	bom.Components = &components
	bom.Dependencies = &[]cdx.Dependency{{Ref: root.BOMRef, Dependencies: &uses}}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(cdx.NewBOMEncoder(out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom), out.Close())
}

// serialNumber is a UUID (version 8, RFC 9562) of the program's digest.
func serialNumber(digest [sha256.Size]byte) string {
	u := digest[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func (m module) component() (cdx.Component, error) {
	purl := "pkg:golang/" + m.path + "@" + m.version
	c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.path, Version: m.version, PackageURL: purl, Scope: cdx.ScopeRequired}
	if m.sum != "" {
		// h1 is the SHA-256 of a list of the files' digests; go.sum holds it too.
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.sum, "h1:"))
		if err != nil {
			return c, fmt.Errorf("checksum %q of %s: %w", m.sum, m.id(), err)
		}
		c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}}
	}
	var licenses cdx.Licenses
	for _, id := range m.licenses {
		licenses = append(licenses, cdx.LicenseChoice{License: &cdx.License{ID: id}})
	}
	c.Licenses = &licenses
	return c, nil
}

// writeLicenses writes the table of licences, and copies their texts.
func writeLicenses(all map[string]module, users map[string][]string, out string) error {
	var b strings.Builder
	b.WriteString("# Licences of what the programs contain\n\nThe texts are below `licenses/`. Written by `make sbom`.\n\n| module | version | licences | in |\n|---|---|---|---|\n")
	for _, id := range slices.Sorted(maps.Keys(all)) {
		m := all[id]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", m.path, m.version, strings.Join(m.licenses, ", "), strings.Join(users[id], ", "))
		if err := m.copyTexts(filepath.Join(out, "licenses")); err != nil {
			return err
		}
	}
	file := filepath.Join(out, "THIRD_PARTY.md")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %d modules\n", file, len(all))
	return nil
}

// copyTexts copies the module's licences and notices; those below its root keep
// their way.
func (m module) copyTexts(to string) error {
	for i, file := range m.files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := filepath.Base(file)
		if i > 0 {
			if rel, err := filepath.Rel(filepath.Dir(m.files[0]), file); err == nil {
				name = rel
			}
		}
		target := filepath.Join(to, m.id(), name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, text, 0o644)); err != nil {
			return err
		}
	}
	return nil
}
