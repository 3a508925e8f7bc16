// SPDX-License-Identifier: Apache-2.0

// Command cluster-agent gives the tenants of one cluster their egress addresses,
// and tells OVN-Kubernetes and the gateways about them.
//
// It is configured by CLUSTER_* variables; --help lists them.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"egress-gateway.io/shared/daemon"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

func run(args, environ []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "help", "--help", "-h", "-help":
			if err := printHelp(stdout); err != nil {
				fmt.Fprintln(stderr, "cluster-agent:", err)
				return exitError
			}
			return exitOK
		case "version", "--version", "-version":
			fmt.Fprintln(stdout, "cluster-agent", daemon.ReadBuild())
			return exitOK
		}
		if args[0] != "healthcheck" {
			fmt.Fprintf(stderr, "cluster-agent: unknown argument %q, see `cluster-agent --help`\n", args[0])
			return exitUsage
		}
	}
	config, err := loadConfig(environ)
	if err != nil {
		fmt.Fprintf(stderr, "cluster-agent: the configuration is wrong:\n  %s\n", strings.ReplaceAll(err.Error(), "\n", "\n  "))
		return exitError
	}
	if len(args) > 0 {
		if err := healthcheck(config); err != nil {
			fmt.Fprintln(stderr, "cluster-agent healthcheck:", err)
			return exitError
		}
		fmt.Fprintln(stdout, "ok")
		return exitOK
	}
	log, err := daemon.NewLogger(stderr, config.LogFormat, config.LogLevel)
	if err != nil {
		fmt.Fprintln(stderr, "cluster-agent:", err)
		return exitError
	}
	if os.Getenv("GOGC") == "" {
		// The caches are small and the garbage of a pass is short-lived: collecting
		// twice as often costs little time and saves a third of the memory.
		debug.SetGCPercent(50)
	}
	ctx, stop := daemon.SignalContext(context.Background())
	defer stop()
	if err := serve(ctx, config, log.With("cluster", config.Name)); err != nil {
		log.Error("stopped", "err", err)
		return exitError
	}
	return exitOK
}

// healthcheck asks the agent beside it whether it is ready, as a container
// engine does.
func healthcheck(c Config) error {
	url, err := daemon.HealthURL(c.Listen, "/readyz")
	if err != nil {
		return err
	}
	return daemon.CheckHealth(url)
}
