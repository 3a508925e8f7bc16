// SPDX-License-Identifier: Apache-2.0

// Command lab builds and removes a lab on this machine; see package lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

const usage = `usage: lab COMMAND [FLAGS]

  up       build a lab and leave it running
  down     remove it, also what a crash left
  status   show its namespaces and processes
  exec     run a command in a part of it: lab exec [FLAGS] PART COMMAND...
  get      fetch a page from a part of it: lab get [FLAGS] PART [URL]
  serve    (used by up) the outside server
  standin  (used by up) what plays OVN-Kubernetes' part

"lab COMMAND --help" tells the flags. All need root.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return errors.New("no command given")
	}
	command, args := args[0], args[1:]
	switch command {
	case "up":
		return up(ctx, args)
	case "down":
		return down(args)
	case "status":
		return status(args)
	case "exec":
		return execute(args)
	case "get":
		return get(ctx, args)
	case "serve":
		return serve(ctx, args)
	case "standin":
		return standin(ctx, args)
	case "help", "-h", "--help":
		fmt.Print(usage)
		return nil
	default:
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", command)
	}
}

// flags makes the flag set of a command, with the lab's name.
func flags(command, arguments string) (*flag.FlagSet, *string) {
	f := flag.NewFlagSet("lab "+command, flag.ContinueOnError)
	name := f.String("name", "lab", "the lab's name: lower-case letters and digits")
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "usage: lab %s [FLAGS] %s\n", command, arguments)
		f.PrintDefaults()
	}
	return f, name
}

// binDir is where this program lies: the others are built beside it.
func binDir() string {
	self, err := os.Executable()
	if err != nil {
		return "build/bin"
	}
	return filepath.Dir(self)
}
