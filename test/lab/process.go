// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// labVariable marks each process of a lab in its environment. It is how
// DownByName knows them, after a crash too, and takes no stranger for one.
const (
	labVariable = "EGRESS_GATEWAY_LAB"
	dirVariable = "EGRESS_GATEWAY_LAB_DIR"
)

const execTimeout = time.Minute

// Process is a program that runs in one of the lab's namespaces. Its methods
// may be called by any goroutine.
type Process struct {
	Name    string
	Part    Part
	PID     int
	LogPath string // standard output and error, appended over restarts

	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end and returns nil for exit code 0.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Kill ends the process with SIGKILL and waits until it is gone. A process
// that has ended already is no error.
func (p *Process) Kill() error {
	err := p.Signal(syscall.SIGKILL)
	if err == nil {
		<-p.done
	}
	return err
}

// Terminate sends SIGTERM and does not wait.
func (p *Process) Terminate() error { return p.Signal(syscall.SIGTERM) }

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(sig os.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s (%d): %w", p.Name, p.PID, err)
	}
	return nil
}

// Running tells whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Start runs a program in a part of the lab: argv[0] is looked up in the
// lab's BinDir first, then in PATH. The process sees env and a few variables
// of ours only, /sys shows its own namespace, and its output goes to
// log/<name>.log. It dies with the program that owns the lab, unless the lab
// is detached. A name that is running already is an error.
func (l *Lab) Start(part Part, name string, env map[string]string, argv ...string) (*Process, error) {
	binary, err := l.lookPath(argv[0])
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.processes[name]; old != nil && old.Running() {
		return nil, fmt.Errorf("start %s: it is running with pid %d", name, old.PID)
	}
	p := &Process{Name: name, Part: part, LogPath: l.path("log", name+".log"), done: make(chan struct{})}
	p.cmd = l.command(context.Background(), part, env, append([]string{binary}, argv[1:]...))
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !l.opts.Detach {
		p.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := l.launch(p); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	l.processes[name] = p
	return p, nil
}

func (l *Lab) launch(p *Process) error {
	out, err := os.OpenFile(p.LogPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := l.spawner.do(p.cmd.Start); err != nil {
		return err
	}
	p.PID = p.cmd.Process.Pid
	pidFile := l.path("run", p.Name+".pid")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(p.PID)+"\n"), 0o644); err != nil {
		return errors.Join(err, p.cmd.Process.Kill(), p.cmd.Wait())
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return nil
}

// command builds the command that runs argv in a part. `ip netns exec` replaces
// itself by the program, so the pid is the program's, and gives it a /sys of
// the namespace, which setns alone would not.
func (l *Lab) command(ctx context.Context, part Part, env map[string]string, argv []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.Namespace(part)}, argv...)...)
	cmd.Dir = l.opts.Dir
	cmd.Env = []string{
		"PATH=" + l.opts.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8",
		labVariable + "=" + l.opts.Name, dirVariable + "=" + l.opts.Dir,
	}
	// What a test run asks of the programs under test: coverage, race reports.
	for _, name := range []string{"GOCOVERDIR", "GORACE", "GOTRACEBACK"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	return cmd
}

// Exec runs a command in a part to its end and returns its output, standard
// error included. It is for commands like `ip`, `conntrack`, `iptables-save`;
// one that takes more than a minute is killed.
func (l *Lab) Exec(part Part, argv ...string) (string, error) {
	return l.output(part, nil, argv)
}

func (l *Lab) output(part Part, env map[string]string, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), execTimeout)
	defer cancel()
	cmd := l.command(ctx, part, env, argv)
	cmd.WaitDelay = time.Second // for what the command left behind with our pipe open
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%v in %s: %w: %s", argv, part, err, out)
	}
	return string(out), nil
}

func (l *Lab) lookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	own := filepath.Join(l.opts.BinDir, name)
	if _, err := os.Stat(own); err == nil {
		return own, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("no %s in %s nor in PATH (`make lab-bin` builds the lab's programs, `make build` ours; etcd is Debian's etcd-server)", name, l.opts.BinDir)
	}
	return path, nil
}

// spawner starts processes from one thread that lives as long as the lab. A
// process with a parent-death signal is killed when the *thread* that forked it
// ends, and Go ends threads whose goroutine ended locked.
type spawner struct {
	work chan func()
	quit chan struct{}
	once sync.Once
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func()), quit: make(chan struct{})}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			select {
			case f := <-s.work:
				f()
			case <-s.quit:
				return
			}
		}
	}()
	return s
}

func (s *spawner) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case s.work <- func() { result <- f() }:
		return <-result
	case <-s.quit:
		return errors.New("the lab is down")
	}
}

func (s *spawner) close() { s.once.Do(func() { close(s.quit) }) }
