// SPDX-License-Identifier: Apache-2.0

// Command demo shows the whole main job on one machine: it builds a lab of
// network namespaces with a real Kubernetes API, a real NATS server and the
// agents as built, does what a user does, and shows what a partner sees. It
// checks what it shows: it ends with a summary and exit code 0, or with the
// first thing that did not hold and exit code 1.
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

	"egress-gateway.io/test/scenario"
)

func main() { os.Exit(run()) }

func run() int {
	keep := flag.Bool("keep", false, "leave the lab running at the end; `lab down --name demo` removes it")
	root := flag.String("root", ".", "the checkout")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: demo [--keep] [--root DIR]\n\nShows the main job in a lab on this machine. Needs root; see make demo.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: needs root, because it makes network namespaces; run: sudo make demo")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	s := &story{out: os.Stdout, start: time.Now()}
	err := tell(ctx, s, *root, *keep)
	if err != nil {
		fmt.Fprintf(os.Stderr, "\nTHE DEMO FAILED at step %d (%s):\n  %v\n", s.step, s.title, err)
		return 1
	}
	return 0
}

// tell runs the acts in one lab, and removes it whatever happens.
func tell(ctx context.Context, s *story, root string, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "egress-gateway-demo-")
	if err != nil {
		return err
	}
	fmt.Fprint(s.out, "egress-gateway: the main job, on this machine.\nEverything happens in network namespaces, which are removed at the end.\n")
	s.begin("a cluster, a gateway VM, a partner")
	s.text(topology)
	w, err := scenario.NewWorld(ctx, scenario.WorldOptions{
		Name: "demo", Dir: dir, BinDir: filepath.Join(root, "build/bin"), Root: root, Log: s.indented(), Detach: keep,
	})
	if err != nil {
		return err
	}
	defer func() {
		if keep && err == nil {
			s.text("The lab is left running; look around with:\n  build/bin/lab status --name demo\n  build/bin/lab exec --name demo gw gateway-agent status\nand remove it with:\n  build/bin/lab down --name demo")
			err = w.Close()
			return
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "\nlogs are kept in %s\n", filepath.Join(dir, "log"))
		}
		if e := w.Down(); e != nil && err == nil {
			err = e
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
	}()
	d := &demo{story: s, w: w}
	for _, act := range []func(context.Context) error{
		d.agents, d.pool, d.label, d.route, d.kernel, d.requests, d.nodes, d.release, d.audit, d.wire,
	} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	s.summary()
	return nil
}
