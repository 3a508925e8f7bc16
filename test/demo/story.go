// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

const topology = `
  node1 192.168.99.21 ─┐                     ┌──────── gateway VM ────────┐
   pods 10.128.0.0/23  ├─ node network ──────┤ enp1s0          enp7s0     ├── outside ── server 192.168.55.13:8080
  node2 192.168.99.22 ─┘  192.168.64.0/18    │ 192.168.99.12   .55.12     │              (answers with the address it sees)
   pods 10.128.2.0/23                        └─────────────┬──────────────┘
                                                           │ NATS only
  control: etcd, kube-apiserver, NATS, cluster-agent ──────┘
`

// story prints the acts, and remembers what held.
type story struct {
	out   io.Writer
	start time.Time
	step  int
	title string
	held  []string
}

// begin opens the next act.
func (s *story) begin(title string) {
	s.step++
	s.title = title
	fmt.Fprintf(s.out, "\n%d. %s\n", s.step, title)
}

// text prints lines below the act.
func (s *story) text(format string, args ...any) {
	text := format
	if len(args) > 0 {
		text = fmt.Sprintf(format, args...)
	}
	fmt.Fprintln(s.out, indent(strings.Trim(text, "\n")))
}

// command prints what a user would type, and what it answered.
func (s *story) command(line, output string) {
	s.text("$ %s", line)
	if output = strings.TrimRight(output, "\n"); output != "" {
		s.text("%s", output)
	}
}

// holds books something that was checked.
func (s *story) holds(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	s.held = append(s.held, line)
	s.text("✓ %s", line)
}

func (s *story) summary() {
	fmt.Fprintf(s.out, "\nAll of it held, in %s:\n", time.Since(s.start).Round(100*time.Millisecond))
	for _, line := range s.held {
		s.text("✓ %s", line)
	}
}

func indent(text string) string {
	return "   " + strings.ReplaceAll(text, "\n", "\n   ")
}

// indented returns a writer whose lines stand below the act.
func (s *story) indented() io.Writer { return &indenter{out: s.out} }

type indenter struct {
	out io.Writer
	buf []byte
}

func (w *indenter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	for {
		line, rest, ok := bytes.Cut(w.buf, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if _, err := fmt.Fprintln(w.out, indent(string(line))); err != nil {
			return 0, err
		}
		w.buf = append([]byte(nil), rest...)
	}
}
