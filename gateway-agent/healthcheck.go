// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"

	"egress-gateway.io/shared/daemon"
)

// runHealthcheck asks the daemon beside it, as a container engine does every
// few seconds. It asks /readyz: a gateway that serves nothing is not well,
// though a restart would not mend it.
func runHealthcheck(c Config, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("healthcheck", flag.ContinueOnError)
	live := flags.Bool("live", false, "ask /livez, which fails only if the daemon is stuck")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	page := "/readyz"
	if *live {
		page = "/livez"
	}
	url, err := daemon.HealthURL(c.Listen, page)
	if err != nil {
		return err
	}
	if err := daemon.CheckHealth(url); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "ok")
	return nil
}
