// SPDX-License-Identifier: Apache-2.0

// Command gateway-agent programs the egress tenants of one or more clusters into
// the kernel of a gateway VM, and keeps them there.
//
// It is configured by GATEWAY_* variables; --help lists them.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"egress-gateway.io/shared/daemon"
	"egress-gateway.io/shared/settings"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // also: `status` found the gateway unhealthy
	exitUsage = 2
)

// command is a subcommand. Its error ends the program with exitError, unless it
// is errUsage.
type command struct {
	name, args, summary string
	run                 func(c Config, args []string, stdout io.Writer) error
}

func commands() []command {
	return []command{
		{"run", "", "serve, until SIGTERM or SIGINT; also without any argument", runDaemon},
		{"status", "[--output text|json]", "show tenants, links, addresses, routes, counters and health; needs no daemon", runStatus},
		{"healthcheck", "[--live]", "ask the running daemon whether it serves, or with --live whether it turns over; exit code 1 if not", runHealthcheck},
		{"cleanup", "[--force]", "remove all that is ours from the kernel and the disk, and nothing else", runCleanup},
		{"confirm-removals", "", "let go of the held tenants, whose records vanished without a tombstone", runConfirm},
	}
}

// errUsage says that the command line is wrong.
var errUsage = errors.New("see `gateway-agent --help`")

func run(args, environ []string, stdout, stderr io.Writer) int {
	name := "run"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "help", "--help", "-h", "-help":
		if err := printHelp(stdout); err != nil {
			fmt.Fprintln(stderr, "gateway-agent:", err)
			return exitError
		}
		return exitOK
	case "version", "--version", "-version":
		fmt.Fprintln(stdout, "gateway-agent", daemon.ReadBuild())
		return exitOK
	}
	for _, c := range commands() {
		if c.name == name {
			return c.execute(args, environ, stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "gateway-agent: no command %q; %v\n", name, errUsage)
	return exitUsage
}

func (c command) execute(args, environ []string, stdout, stderr io.Writer) int {
	config, err := loadConfig(environ)
	if err != nil {
		fmt.Fprintf(stderr, "gateway-agent: the configuration is wrong:\n  %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		return exitError
	}
	switch err := c.run(config, args, stdout); {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "gateway-agent %s: %v\n", c.name, err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "gateway-agent %s: %v\n", c.name, err)
		return exitError
	}
}

func printHelp(w io.Writer) error {
	fmt.Fprint(w, `gateway-agent programs the egress tenants of OVN-Kubernetes clusters into the
kernel of this gateway VM, and keeps them there. What it needs it gets from NATS;
without NATS it serves what it has on disk.

Usage:
`)
	for _, c := range commands() {
		fmt.Fprintf(w, "  gateway-agent %-38s %s\n", strings.TrimSpace(c.name+" "+c.args), c.summary)
	}
	fmt.Fprintf(w, "  gateway-agent %-38s %s\n\nEnvironment variables, with their defaults:\n", "--help | --version", "")
	return settings.Print(w, envPrefix, &Config{})
}

// noArgs is the error of arguments where none are taken.
func noArgs(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q; %w", args[0], errUsage)
	}
	return nil
}

// parseFlags parses args, which must be flags only.
func parseFlags(f *flag.FlagSet, args []string) error {
	f.SetOutput(io.Discard)
	if err := f.Parse(args); err != nil {
		return errors.Join(err, errUsage)
	}
	return noArgs(f.Args())
}
