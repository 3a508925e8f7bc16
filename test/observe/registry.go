// SPDX-License-Identifier: Apache-2.0

// Package observe checks what operators look at: that the alert rules and the
// dashboard name metrics and labels that exist. The tables in docs/metrics.md,
// which are made from the code, say which do.
package observe

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Registry holds the labels of each metric, those of both agents joined.
type Registry map[string][]string

// scrapeLabels are those that Prometheus adds, and those of its own metrics.
var scrapeLabels = []string{"job", "instance"}

// ReadRegistry reads the tables of docs/metrics.md. root is the module's root.
func ReadRegistry(root string) (Registry, error) {
	doc, err := os.ReadFile(filepath.Join(root, "docs/metrics.md"))
	if err != nil {
		return nil, err
	}
	out := Registry{}
	word := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(string(doc)) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 || !strings.HasPrefix(line, "| `") {
			continue
		}
		name := strings.Trim(strings.TrimSpace(cells[1]), "`")
		names := []string{name}
		var labels []string
		for _, m := range word.FindAllStringSubmatch(cells[3], -1) {
			labels = append(labels, m[1])
		}
		if strings.TrimSpace(cells[2]) == "histogram" {
			names = []string{name + "_sum", name + "_count", name + "_bucket"}
		}
		for _, n := range names {
			out[n] = append(out[n], labels...)
			if strings.HasSuffix(n, "_bucket") {
				out[n] = append(out[n], "le")
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no metrics in the tables of docs/metrics.md")
	}
	return out, nil
}

var (
	metricName = regexp.MustCompile(`\b(?:egress|informer|rest_client|process|go)_[a-z0-9_]+\b`)
	stringText = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	selector   = regexp.MustCompile(`([a-z][a-z0-9_]*)\s*\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)`)
	grouping   = regexp.MustCompile(`\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
)

// ours tells the metrics that the tables hold; those of Go and of the process
// are the client library's.
func ours(name string) bool {
	return !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_")
}

// Names returns the metrics that an expression names.
func Names(expr string) []string {
	bare := grouping.ReplaceAllString(stringText.ReplaceAllString(expr, `""`), "")
	var out []string
	for _, part := range metricName.FindAllString(bare, -1) {
		if !slices.Contains(out, part) {
			out = append(out, part)
		}
	}
	return out
}

// Check returns what an expression names that does not exist: metrics, labels of
// a metric's selector, labels to group by.
func (r Registry) Check(expr string) []string {
	var wrong []string
	names := Names(expr)
	if len(names) == 0 {
		wrong = append(wrong, "it names no metric of ours")
	}
	for _, name := range names {
		if _, known := r[name]; ours(name) && !known {
			wrong = append(wrong, "no metric "+name)
		}
	}
	bare := stringText.ReplaceAllString(expr, `""`)
	for _, s := range selector.FindAllStringSubmatch(bare, -1) {
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(append(scrapeLabels, r[s[1]]...), m[1]) {
				wrong = append(wrong, "no label "+m[1]+" of "+s[1])
			}
		}
	}
	known := r.Labels(expr)
	for _, g := range grouping.FindAllStringSubmatch(bare, -1) {
		for _, label := range strings.FieldsFunc(g[1], func(c rune) bool { return c == ',' || c == ' ' }) {
			if !slices.Contains(known, label) {
				wrong = append(wrong, "no label "+label+" of any of "+strings.Join(names, ", "))
			}
		}
	}
	return wrong
}

// Labels returns the labels that results of an expression can have at most.
func (r Registry) Labels(expr string) []string {
	out := slices.Clone(scrapeLabels)
	for _, name := range Names(expr) {
		out = append(out, r[name]...)
	}
	return out
}
