// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// engine is a docker engine of our own: what it keeps is in a directory of its
// own, and gone with it. Another engine on the machine is not touched.
type engine struct {
	t       *testing.T
	dir     string
	cgroup  string
	process *exec.Cmd
	ended   chan error
}

// An engine's directory is named so: a socket's path has 107 bytes at most. The
// file owner in it holds the pid of the test.
const (
	prefix = "egd"
	owner  = "owner"
)

// inNetwork is the command that runs another one in a network namespace. It is
// not `ip netns exec`, which would hide the control groups.
func inNetwork(namespace string) []string {
	return []string{"nsenter", "--net=/run/netns/" + namespace}
}

// startEngine starts dockerd by way of the command enter, and ends it with the
// test. With `--network host` its containers are where enter leads to.
func startEngine(t *testing.T, enter []string, flags ...string) *engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: the test starts a docker engine; run: sudo make test")
	}
	for _, program := range []string{"docker", "dockerd", "containerd", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v; `make setup` installs docker.io", err)
		}
	}
	sweep(t)
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, owner), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, dir: dir, cgroup: "/" + filepath.Base(dir), ended: make(chan error, 1)}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{"dockerd", "--host", "unix://" + filepath.Join(dir, "sock"), "--data-root", filepath.Join(dir, "data"),
		"--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"), "--cgroup-parent", e.cgroup}
	argv = append(slices.Clone(enter), argv...)
	e.process = exec.Command(argv[0], append(argv[1:], flags...)...)
	e.process.Stdout, e.process.Stderr = log, log
	// If the test is killed, dockerd ends, and its containers with it. It is the
	// end of the thread that counts, hence one that waits as long.
	e.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := e.process.Start()
		started <- err
		if err == nil {
			e.ended <- e.process.Wait()
		}
	}()
	err = errors.Join(<-started, log.Close())
	t.Cleanup(e.stop)
	if err != nil {
		t.Fatalf("start dockerd: %v", err)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err = e.try("version"); err == nil {
			return e
		}
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not answer: %v\n%s", err, e.logTail())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// stop ends all containers and the engine, and removes what it kept.
func (e *engine) stop() {
	if e.t.Failed() {
		e.t.Logf("end of dockerd's log:\n%s", e.logTail())
	}
	if ids, err := e.try("ps", "-aq"); err == nil && ids != "" {
		if _, err := e.try(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...); err != nil {
			e.t.Errorf("remove containers: %v", err)
		}
	}
	if e.process.Process != nil {
		// Its containerd, which it started, ends with it.
		err := e.process.Process.Signal(unix.SIGTERM)
		if err := errors.Join(err, <-e.ended); err != nil {
			e.t.Errorf("stop dockerd: %v", err)
		}
	}
	if pids := left(e.dir); len(pids) > 0 {
		e.t.Errorf("processes outlived the engine: %v", pids)
	}
	if err := remove(e.dir); err != nil {
		e.t.Error(err)
	}
}

// sweep removes what an engine left whose test was killed.
func sweep(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, owner))
		pid, bad := strconv.Atoi(string(b))
		if err != nil || bad != nil || unix.Kill(pid, 0) == nil {
			continue // it is being made, or in use
		}
		if err := remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// remove ends what still runs on an engine's directory, and removes that with
// its mounts and control groups.
func remove(dir string) error {
	for _, pid := range left(dir) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, at := range mounts {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(dir))
	if err != nil {
		return err
	}
	var errs []error
	groups = append(groups, "/sys/fs/cgroup/"+filepath.Base(dir))
	for _, g := range groups {
		below, err := filepath.Glob(g + "/*/") // of containers that had to be killed
		if err != nil {
			return err
		}
		for _, b := range below {
			errs = append(errs, os.Remove(b))
		}
		if err := os.Remove(g); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove control group: %w", err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// left are the processes that name an engine's directory, or are in its control
// group: containers, and what supervises them.
func left(dir string) (pids []int) {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range processes {
		var known []byte
		for _, file := range []string{"cmdline", "cgroup"} {
			b, _ := os.ReadFile(filepath.Join(proc, file)) // it may have ended
			known = append(known, b...)
		}
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err == nil && (bytes.Contains(known, []byte(dir)) || bytes.Contains(known, []byte("/"+filepath.Base(dir)+"/"))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mountsBelow lists the places below a directory where something is mounted, the
// deepest first.
func mountsBelow(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var at []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			at = append([]string{f[4]}, at...)
		}
	}
	return at, nil
}

func (e *engine) logTail() string {
	b, err := os.ReadFile(filepath.Join(e.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// environ is the environment of programs that speak to this engine.
func (e *engine) environ() []string {
	return append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(e.dir, "sock"), "DOCKER_BUILDKIT=0", "COMPOSE_DOCKER_CLI_BUILD=0")
}

// command prepares a program, from the checkout, that speaks to this engine.
func (e *engine) command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = root, e.environ()
	return cmd
}

// try runs a docker command and returns its standard output without white space
// around; the error has its standard error.
func (e *engine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := e.command(ctx, append([]string{"docker"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(stdout.String()), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// docker is try that ends the test on an error.
func (e *engine) docker(args ...string) string {
	e.t.Helper()
	out, err := e.try(args...)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}
