// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"egress-gateway.io/shared/bus"
)

// printText writes an event as a line for a person. What a terminal would take
// for a command to itself is quoted: agents may be lied to.
func printText(w io.Writer, a bus.AuditEvent) error {
	words := []string{a.Time.UTC().Format("2006-01-02T15:04:05.000Z"), word(strings.TrimPrefix(a.Source, "/egress-gateway/")), word(a.Kind)}
	if a.Subject != "" {
		words = append(words, word(a.Subject))
	}
	_, err := fmt.Fprintln(w, strings.Join(append(words, details(a.Data)...), " "))
	return err
}

// details writes the members of a JSON object as name=value, in their order;
// lists of words have commas. What is nested deeper, or is no object, stays JSON.
func details(data json.RawMessage) []string {
	in := json.NewDecoder(bytes.NewReader(data))
	if t, err := in.Token(); err != nil || t != json.Delim('{') {
		return compact(data)
	}
	var out []string
	for in.More() {
		name, err := in.Token()
		var value json.RawMessage
		if err == nil {
			err = in.Decode(&value)
		}
		if err != nil {
			return compact(data)
		}
		out = append(out, word(fmt.Sprint(name))+"="+plain(value))
	}
	return out
}

// compact writes JSON as it is, and nothing for null or for what is no JSON.
func compact(data json.RawMessage) []string {
	var b bytes.Buffer
	if json.Compact(&b, data) != nil || b.String() == "null" {
		return nil
	}
	return []string{b.String()}
}

// plain writes a JSON value as a word if it is one, or a list of them.
func plain(value json.RawMessage) string {
	var text *string
	if json.Unmarshal(value, &text) == nil && text != nil {
		return word(*text)
	}
	var list []string
	if json.Unmarshal(value, &list) == nil && list != nil {
		for i := range list {
			list[i] = word(list[i])
		}
		return strings.Join(list, ",")
	}
	return strings.Join(compact(value), " ")
}

// word quotes what is no single printable word.
func word(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || r == '"' || !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
