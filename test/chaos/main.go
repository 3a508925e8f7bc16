// SPDX-License-Identifier: Apache-2.0

// Command chaos proves that no packet ever leaves a gateway with a wrong
// source, whatever happens: in a lab with the agents as built, 200 tenants send
// all the while, and at random, but reproducible from a seed, tenants come and
// go, addresses change hands, nodes join and leave, neighbour entries go stale,
// agents are killed, what the gateway-agent programmed is deleted by hand, and
// NATS and the API server are away. A capture on the external wire takes down
// every packet; at the end each is held against who had a right to its source at
// that very time. The last line on standard output is
//
//	chaos: N packets checked, W wrong, longest interruption M ms, seed S
//
// and the exit code is 0 only if W is 0 and all else that was checked held; with
// -without-guards only if W is not 0.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// Defaults of a full run. The test in this folder runs the same code for a
// tenth of the time; see there.
const (
	fullDuration = 10 * time.Minute
	fullTenants  = 200
)

func main() { os.Exit(run()) }

func run() int {
	o := options{Name: fmt.Sprintf("chaos%d", os.Getpid()), Log: os.Stdout}
	flag.DurationVar(&o.Duration, "duration", fullDuration, "how long there are disturbances")
	flag.Uint64Var(&o.Seed, "seed", 0, "what the disturbances are drawn from; 0 takes one from the clock")
	flag.IntVar(&o.Tenants, "tenants", fullTenants, "how many tenants there are, 20 to 500")
	flag.BoolVar(&o.WithoutGuards, "without-guards", false, "take the guards away all the while: packets leave with wrong sources, and W above 0 is what is wanted")
	flag.StringVar(&o.Root, "root", ".", "the checkout")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: chaos [-duration 10m] [-seed N] [-tenants N] [-without-guards] [-root DIR]\n\nNeeds root; see make chaos.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := o.check(); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "egress-gateway-chaos-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	o.Dir, o.BinDir = dir, filepath.Join(o.Root, "build/bin")
	result, err := chaos(ctx, o)
	if err != nil {
		fmt.Fprintf(os.Stderr, "chaos: the run did not come to its end: %v\nlogs are in %s\n", err, dir)
		return 1
	}
	result.print(os.Stdout)
	if !result.good() {
		fmt.Fprintf(os.Stderr, "chaos: failed; logs are in %s\n", dir)
		fmt.Println(result.line())
		return 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	fmt.Println(result.line())
	return 0
}
