// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab/namespace"
)

// killTimeout bounds the wait for a killed process. Only a process stuck in
// the kernel outlives it.
const killTimeout = 5 * time.Second

// DownByName removes all that a lab of this name left on the machine: its
// processes, known by a variable in their environment, and its namespaces,
// known by their names, with all that is in them. It needs nothing of the
// program that made the lab, and does nothing if there is nothing. Logs and
// state in the lab's directory stay.
func DownByName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: want lower-case letters and digits, at most 20", name)
	}
	if err := killAll(name); err != nil {
		return err
	}
	names, err := namespace.List(name + "-")
	if err != nil {
		return err
	}
	var errs []error
	for _, ns := range names {
		errs = append(errs, namespace.Delete(ns))
	}
	return errors.Join(errs...)
}

// killAll kills until a look at all processes finds none of the lab: one of
// them may fork while we look.
func killAll(name string) error {
	deadline := time.Now().Add(killTimeout)
	for {
		found, err := Processes(name)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, f := range found {
			if err := f.kill(name, time.Until(deadline)); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("lab %s: processes keep appearing: %v", name, found)
		}
	}
}

// Found is a process of a lab as /proc shows it.
type Found struct {
	PID     int
	Dir     string // the lab's directory
	Command string
}

// Processes lists the processes of a lab by name, whoever started them. The
// calling process is never among them.
func Processes(lab string) ([]Found, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Found
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if f, ok := inspect(pid, lab); ok {
			found = append(found, f)
		}
	}
	return found, nil
}

// inspect reads one process; one that ended meanwhile, or a zombie, is not
// the lab's.
func inspect(pid int, lab string) (Found, bool) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	environ, err := os.ReadFile(filepath.Join(proc, "environ"))
	if err != nil {
		return Found{}, false
	}
	f, ours := Found{PID: pid}, false
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		key, value, _ := strings.Cut(string(v), "=")
		switch {
		case key == labVariable && value == lab:
			ours = true
		case key == dirVariable:
			f.Dir = value
		}
	}
	if !ours {
		return Found{}, false
	}
	cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	f.Command = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	return f, err == nil
}

// kill ends the process and waits until it has ended. The pid is looked at
// again once a pidfd holds it, so that a reused pid is never hit.
func (f Found) kill(lab string, timeout time.Duration) error {
	fd, err := unix.PidfdOpen(f.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", f.PID, err)
	}
	defer unix.Close(fd)
	if _, ours := inspect(f.PID, lab); !ours {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", f.PID, err)
	}
	deadline := time.Now().Add(timeout)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d (%s) does not die", f.PID, f.Command)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", f.PID, err)
		}
		if n > 0 {
			return nil
		}
	}
}
