// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/lab/apbstandin"
	"egress-gateway.io/test/lab/outside"
)

// execute replaces this program by the command. For the gateway VM it sets the
// environment that gateway-agent has there, so that its subcommands work.
func execute(args []string) error {
	f, name := flags("exec", "PART COMMAND [ARGUMENT...]")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() < 2 {
		f.Usage()
		return errors.New("exec: want a part and a command")
	}
	ip, err := exec.LookPath("ip")
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	env := append(os.Environ(), "PATH="+binDir()+":"+os.Getenv("PATH"))
	more, err := lab.Environment(*name, lab.Part(f.Arg(0)))
	if err != nil {
		return err
	}
	argv := append([]string{"ip", "netns", "exec", *name + "-" + f.Arg(0)}, f.Args()[1:]...)
	return syscall.Exec(ip, argv, append(env, more...))
}

func get(ctx context.Context, args []string) error {
	f, name := flags("get", "PART [URL]")
	if err := f.Parse(args); err != nil {
		return err
	}
	url := lab.ServerURL
	switch f.NArg() {
	case 1:
	case 2:
		url = f.Arg(1)
	default:
		f.Usage()
		return errors.New("get: want a part, and a URL if not the outside server's")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	body, err := lab.Get(ctx, *name, lab.Part(f.Arg(0)), url)
	if err == nil {
		fmt.Println(body)
	}
	return err
}

func serve(ctx context.Context, args []string) error {
	s, err := outside.Listen(lab.HTTPPort, lab.EchoPort, args...)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

func standin(ctx context.Context, args []string) error {
	f, name := flags("standin", "")
	kubeconfig := f.String("kubeconfig", "", "file")
	if err := f.Parse(args); err != nil {
		return err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS = -1
	s, err := apbstandin.New(lab.StandinConfig(*name), rc, slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	if err != nil {
		return err
	}
	return s.Run(ctx)
}
