// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// command is a program that runs beside what its caller does.
type command struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	err            error // it could not be started
}

// start starts a program. Whoever does waits for it.
func start(ctx context.Context, stdin []byte, program string, args ...string) *command {
	c := &command{cmd: exec.CommandContext(ctx, program, args...)}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = bytes.NewReader(stdin), &c.stdout, &c.stderr
	c.err = c.cmd.Start()
	return c
}

// wait returns the program's output. The error holds what it said.
func (c *command) wait() ([]byte, error) {
	err := c.err
	if err == nil {
		err = c.cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(c.cmd.Args, " "), err, strings.TrimSpace(c.stderr.String()))
	}
	return c.stdout.Bytes(), nil
}

// run runs a program and returns its output.
func run(ctx context.Context, stdin []byte, program string, args ...string) ([]byte, error) {
	return start(ctx, stdin, program, args...).wait()
}
