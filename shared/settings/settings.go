// SPDX-License-Identifier: Apache-2.0

// Package settings reads a program's configuration from environment variables
// into a struct whose tags are the only place where names, defaults and
// meanings stand: errors and help are made from them, and can not drift. It is
// the only importer of envconfig.
//
// Tags are those of envconfig (split_words, default, desc).
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kelseyhightower/envconfig"
)

// Read fills spec, a pointer to a struct, from the variables that begin with
// prefix. It returns an error for each value that does not parse (complete is
// false then, as the zero value of what could not be read is no basis to judge
// the rest), and for each variable with our prefix that spec does not have.
// program is named in the remedy.
//
// After an error the process can only report it and end: variables that do not
// parse are taken out of its environment.
func Read(program, prefix string, environ []string, spec any) (complete bool, errs []error) {
	unread := process(prefix, spec)
	return len(unread) == 0, append(unknown(program, prefix, environ, spec), unread...)
}

// process fills spec and returns all values that do not parse. envconfig stops
// at the first one; each is therefore taken out of the environment, and the
// rest is read again.
func process(prefix string, spec any) []error {
	var errs []error
	for {
		err := envconfig.Process(prefix, spec)
		if err == nil {
			return errs
		}
		var parse *envconfig.ParseError
		if !errors.As(err, &parse) || os.Getenv(parse.KeyName) == "" {
			return append(errs, fmt.Errorf("read the environment: %w", err))
		}
		errs = append(errs, fmt.Errorf("%s=%q: want %s (%w)", parse.KeyName, parse.Value, wanted(parse.TypeName), parse.Err))
		if err := os.Unsetenv(parse.KeyName); err != nil {
			return append(errs, err)
		}
	}
}

// wanted says in words what a variable of a Go type holds.
func wanted(goType string) string {
	switch goType {
	case "time.Duration":
		return "a duration, e.g. 30s"
	case "[]netip.Prefix":
		return "a comma list of networks, e.g. 10.128.0.0/14,fd01::/48"
	case "uint32":
		return "a number, e.g. 0xfff00000"
	case "int", "int64":
		return "a number, e.g. 1"
	case "bool":
		return "true or false"
	}
	return "a " + goType
}

// unknown returns an error for each variable with our prefix that spec does not
// have: most likely a misspelt one whose default is in force unnoticed.
func unknown(program, prefix string, environ []string, spec any) []error {
	list, err := Describe(prefix, spec)
	if err != nil {
		return []error{err}
	}
	var known []string
	for _, v := range list {
		known = append(known, v.Name)
	}
	var errs []error
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, prefix+"_") || slices.Contains(known, name) {
			continue
		}
		hint := "remove it; `" + program + " --help` lists all variables"
		if near := nearest(name, known); near != "" {
			hint = "did you mean " + near + "?"
		}
		errs = append(errs, fmt.Errorf("%s is no variable of this program: %s", name, hint))
	}
	return errs
}

// nearest returns the candidate that most likely was meant, or "".
func nearest(name string, candidates []string) string {
	const tooFar = 4
	best, distance := "", tooFar
	for _, c := range candidates {
		if d := editDistance(name, c); d < distance {
			best, distance = c, d
		}
	}
	return best
}

// editDistance is the Levenshtein distance.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Variable is one line of the help.
type Variable struct{ Name, Default, Meaning string }

// Describe returns all variables of spec, from its tags.
func Describe(prefix string, spec any) ([]Variable, error) {
	var b bytes.Buffer
	const format = "{{range .}}{{usage_key .}}\t{{usage_default .}}\t{{usage_description .}}\n{{end}}"
	if err := envconfig.Usagef(prefix, spec, &b, format); err != nil {
		return nil, fmt.Errorf("describe the variables: %w", err)
	}
	var out []Variable
	for line := range strings.Lines(b.String()) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		out = append(out, Variable{f[0], f[1], f[2]})
	}
	return out, nil
}

// Print writes all variables of spec as a table, for --help.
func Print(w io.Writer, prefix string, spec any) error {
	list, err := Describe(prefix, spec)
	if err != nil {
		return err
	}
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range list {
		fmt.Fprintf(tab, "  %s\t%s\t%s\n", v.Name, v.Default, v.Meaning)
	}
	return tab.Flush()
}
