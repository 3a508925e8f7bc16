// SPDX-License-Identifier: Apache-2.0

// Command egressctl makes and keeps what a secured NATS needs, and reads the
// audit.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"egress-gateway.io/shared/daemon"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, time.Now)) }

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // also: something that was checked is not as it should be
	exitUsage = 2
)

// env is what a subcommand acts on.
type env struct {
	out io.Writer
	now func() time.Time
}

// command is a subcommand. Its error ends the program with exitError, unless it
// is a usageError.
type command struct {
	name, summary string
	run           func(ctx context.Context, e env, args []string) error
}

func commands() []command {
	return []command{
		{"init", "make the directory with certificates, keys and configuration, or add to it", runInit},
		{"certs", "list the directory's certificates and when they expire", runCerts},
		{"setup", "make the buckets and the stream in NATS, or make them what they should be", runSetup},
		{"audit list", "print the audit's events, oldest first", runAuditList},
		{"audit tail", "print the audit's events to come", runAuditTail},
		{"audit verify", "look for missing, doubled and forged events in the audit", runAuditVerify},
	}
}

// usageError says that the command line is wrong.
type usageError struct{ error }

func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func run(args []string, stdout, stderr io.Writer, now func() time.Time) int {
	if len(args) == 0 {
		printHelp(stderr)
		return exitUsage
	}
	switch args[0] {
	case "help", "--help", "-h", "-help":
		printHelp(stdout)
		return exitOK
	case "version", "--version", "-version":
		fmt.Fprintln(stdout, "egressctl", daemon.ReadBuild())
		return exitOK
	}
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if len(args) < len(words) || strings.Join(args[:len(words)], " ") != c.name {
			continue
		}
		ctx, stop := daemon.SignalContext(context.Background())
		defer stop()
		err := c.run(ctx, env{out: stdout, now: now}, args[len(words):])
		var wrong usageError
		switch {
		case err == nil, errors.Is(err, flag.ErrHelp):
			return exitOK
		case errors.As(err, &wrong):
			fmt.Fprintf(stderr, "egressctl %s: %v\nSee `egressctl %s --help`.\n", c.name, err, c.name)
			return exitUsage
		}
		fmt.Fprintf(stderr, "egressctl %s: %s\n", c.name, strings.ReplaceAll(err.Error(), "\n", "\n  "))
		return exitError
	}
	fmt.Fprintf(stderr, "egressctl: there is no command %q; see `egressctl --help`\n", strings.Join(args, " "))
	return exitUsage
}

func printHelp(w io.Writer) {
	fmt.Fprint(w, `egressctl makes and keeps what a secured NATS needs, and reads the audit.

Usage: egressctl COMMAND [OPTIONS] | --help | --version

`)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-13s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, "\n`egressctl COMMAND --help` lists a command's options.\n")
}

// parse reads a command's options; it takes no other arguments.
func (e env) parse(f *flag.FlagSet, intro string, args []string) error {
	f.SetOutput(io.Discard) // errors are returned, and printed once
	err := f.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(e.out, "%s\n\nUsage: egressctl %s [OPTIONS]\n\n", intro, f.Name())
		f.SetOutput(e.out)
		f.PrintDefaults()
		return err
	}
	if err != nil {
		return usageError{err}
	}
	if f.NArg() > 0 {
		return usage("unexpected argument %q", f.Arg(0))
	}
	return nil
}

// words collects the values of an option that may be given several times, each
// a comma list.
type words []string

func (w *words) String() string { return strings.Join(*w, ",") }

func (w *words) Set(s string) error {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v == "" {
			return errors.New("an empty value")
		}
		*w = append(*w, v)
	}
	return nil
}
