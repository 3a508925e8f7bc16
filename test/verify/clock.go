// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
)

// clockUses finds calls of time.Now and its kin in the non-test files of the
// packages: a decision that reads the clock can not be tested as a value.
func clockUses(packages []string) ([]string, error) {
	forbidden := map[string]bool{"Now": true, "Since": true, "Until": true, "After": true, "Sleep": true, "NewTimer": true, "NewTicker": true, "Tick": true, "AfterFunc": true}
	var out []string
	for _, dir := range packages {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("no files in %s: %w", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			parsed, err := parser.ParseFile(set, file, nil, 0)
			if err != nil {
				return nil, fmt.Errorf("parse %s: %w", file, err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok || !forbidden[sel.Sel.Name] {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" {
					out = append(out, fmt.Sprintf("%s: %s is pure and must not use time.%s", set.Position(n.Pos()), dir, sel.Sel.Name))
				}
				return true
			})
		}
	}
	return out, nil
}
