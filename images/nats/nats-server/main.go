// SPDX-License-Identifier: Apache-2.0

// Command nats-server is the NATS server as its own module has it, with the same
// arguments, and one subcommand more: an image from scratch holds nothing else
// that a health check could run.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/nats-io/nats-server/v2/server"

	"egress-gateway.io/shared/daemon"
)

// healthURL is the server's own health page; the configuration must have
// `http: 127.0.0.1:8222`.
const healthURL = "http://127.0.0.1:8222/healthz?js-server-only=true"

const usage = `nats-server runs a NATS server; see https://docs.nats.io/running-a-nats-service/introduction/flags

Usage:
  nats-server --config FILE [--jetstream] [--store_dir DIR] ...
  nats-server -t --config FILE     check the configuration and exit
  nats-server healthcheck [URL]    ask a running server's monitoring page; exit code 0 if it is well
                                   (default ` + healthURL + `)
  nats-server --version
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var err error
	if len(args) > 0 && args[0] == "healthcheck" {
		err = healthcheck(args[1:], stdout)
	} else {
		err = serve(args, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "nats-server:", err)
		return 1
	}
	return 0
}

func healthcheck(args []string, stdout io.Writer) error {
	url := healthURL
	if len(args) > 0 {
		url = args[0]
	}
	if err := daemon.CheckHealth(url); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "ok")
	return nil
}

// serve is what the main function of nats-server does. It ends with SIGINT and
// SIGTERM, which the server handles.
func serve(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("nats-server", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	asked := false // for help or the version, which are the whole answer
	answer := func(text string) func() {
		return func() { asked = true; fmt.Fprint(stdout, text) }
	}
	flags.Usage = func() {}
	options, err := server.ConfigureOptions(flags, args, answer("nats-server: v"+server.VERSION+"\n"), answer(usage), answer(usage))
	switch {
	case asked:
		return nil
	case err != nil:
		return fmt.Errorf("%w; see nats-server --help", err)
	case options.CheckConfig:
		fmt.Fprintf(stdout, "nats-server: configuration file %s is valid\n", options.ConfigFile)
		return nil
	}
	s, err := server.NewServer(options)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	if err := server.Run(s); err != nil {
		return err
	}
	s.WaitForShutdown()
	return nil
}
