// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kelseyhightower/envconfig"
)

// processEnv fills spec from the variables that begin with prefix and returns
// all values that do not parse.
//
// envconfig stops at the first value that does not parse; each one is therefore
// taken out of the environment and the rest is read again. After an error the
// process can only report it and end.
func processEnv(prefix string, spec any) []error {
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
		errs = append(errs, fmt.Errorf("%s=%q: want a %s, e.g. %s (%w)",
			parse.KeyName, parse.Value, kindOf(parse.TypeName), exampleOf(parse.TypeName), parse.Err))
		if err := os.Unsetenv(parse.KeyName); err != nil {
			return append(errs, err)
		}
	}
}

// kindOf says in words what a variable of a Go type holds.
func kindOf(goType string) string {
	switch goType {
	case "time.Duration":
		return "duration"
	case "[]netip.Prefix":
		return "comma list of networks"
	case "uint32", "int", "int64":
		return "number"
	case "bool":
		return "true or false"
	}
	return goType
}

func exampleOf(goType string) string {
	switch goType {
	case "time.Duration":
		return "30s"
	case "[]netip.Prefix":
		return "10.128.0.0/14,fd01::/48"
	case "uint32":
		return "0xfff00000"
	case "bool":
		return "true"
	}
	return "1"
}

// variables returns the names of all variables of spec.
func variables(prefix string, spec any) []string {
	var b bytes.Buffer
	if err := envconfig.Usagef(prefix, spec, &b, "{{range .}}{{usage_key .}}\n{{end}}"); err != nil {
		panic("the template of the variables' names: " + err.Error()) // it is constant
	}
	return strings.Fields(b.String())
}

// unknownVariables returns an error for each variable with our prefix that spec
// does not have: most likely a misspelt one whose default is in force unnoticed.
func unknownVariables(prefix string, environ []string, spec any) []error {
	known := variables(prefix, spec)
	var errs []error
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, prefix+"_") || slices.Contains(known, name) {
			continue
		}
		hint := "remove it; `gateway-agent --help` lists all variables"
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

// variable is one line of the help.
type variable struct{ name, value, meaning string }

// describeVariables returns all variables of spec with their defaults and
// meanings, from its tags. more says what the tags do not, by name.
func describeVariables(prefix string, spec any, more map[string]string) ([]variable, error) {
	var b bytes.Buffer
	const format = "{{range .}}{{usage_key .}}\t{{usage_default .}}\t{{usage_description .}}\n{{end}}"
	if err := envconfig.Usagef(prefix, spec, &b, format); err != nil {
		return nil, err
	}
	var out []variable
	for line := range strings.Lines(b.String()) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		out = append(out, variable{f[0], f[1], cmp.Or(f[2], more[f[0]])})
	}
	return out, nil
}

// printVariables writes them as a table.
func printVariables(w io.Writer, list []variable) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, v := range list {
		fmt.Fprintf(tab, "  %s\t%s\t%s\n", v.name, v.value, v.meaning)
	}
	return tab.Flush()
}
