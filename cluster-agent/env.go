// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

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
		return "a duration, e.g. 15s"
	case "[]netip.Prefix":
		return "a comma list of networks, e.g. 10.128.0.0/14,fd01::/48"
	case "int":
		return "a number"
	case "bool":
		return "true or false"
	}
	return "a " + goType
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

// unknownVariables returns an error for each variable with our prefix that spec
// does not have: most likely a misspelt one whose default is in force unnoticed.
func unknownVariables(prefix string, environ []string, spec any) []error {
	known, err := describeVariables(prefix, spec, nil)
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		is := func(v variable) bool { return v.name == name }
		if strings.HasPrefix(name, prefix+"_") && !slices.ContainsFunc(known, is) {
			errs = append(errs, fmt.Errorf("%s is no variable of this program: correct its name or remove it; `cluster-agent --help` lists all", name))
		}
	}
	return errs
}
