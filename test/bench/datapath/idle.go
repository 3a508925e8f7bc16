// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Idle is what the agent costs while nothing changes.
type Idle struct {
	CPU     float64 // of one processor, the agent's children included
	MiB     float64 // resident
	Wakeups float64 // a second, of all threads
}

// Rest measures a gateway-agent with many tenants, a NATS server beside it and
// nothing to do, for so long. It needs root, and removes all that it made.
func Rest(ctx context.Context, o Options, tenants int, nats string, long time.Duration) (i Idle, err error) {
	t, err := build(ctx, fmt.Sprintf("egwid%d", os.Getpid()), o.Families, tenants)
	if err != nil {
		return i, err
	}
	defer func() { err = errors.Join(err, t.remove()) }()
	g := t.gateway(Ours)
	_, _, stop, err := g.published(ctx, o.Dir, tenants, nats)
	if err != nil {
		return i, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	a, err := g.startAgent(o.Agent, o.Dir, natsURL)
	if err != nil {
		return i, err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	if err := g.programmed(ctx, a, tenants); err != nil {
		return i, err
	}
	// To announce thousands of new addresses takes minutes at the pace that OVN
	// bears; an agent that finds them in the kernel only refreshes them.
	if err := g.restart(a, o.Agent, o.Dir, natsURL); err != nil {
		return i, err
	}
	fmt.Fprintf(o.Log, "idle: process %d in %s\n", a.cmd.Process.Pid, g.ns)
	if err := pause(ctx, 10*settle); err != nil {
		return i, err
	}
	return idle(ctx, o.Log, a, long)
}

// idle measures an agent that has nothing to do.
func idle(ctx context.Context, log io.Writer, a *agent, long time.Duration) (i Idle, err error) {
	fmt.Fprintf(log, "idle for %s\n", long)
	pid := a.cmd.Process.Pid
	cpu, err := cpuTime(pid)
	if err != nil {
		return i, err
	}
	wakeups, err := switches(pid)
	if err != nil {
		return i, err
	}
	began := time.Now()
	if err := pause(ctx, long); err != nil {
		return i, err
	}
	took := time.Since(began).Seconds()
	cpuAfter, err := cpuTime(pid)
	if err != nil {
		return i, err
	}
	wakeupsAfter, err := switches(pid)
	if err != nil {
		return i, err
	}
	i.CPU, i.Wakeups = (cpuAfter-cpu).Seconds()/took, float64(wakeupsAfter-wakeups)/took
	i.MiB, err = ResidentMiB(pid)
	return i, err
}

// cpuTime is what a process and the children it waited for have used.
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name may hold spaces; fields 14 to 17 are utime, stime, cutime, cstime.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	ticks := int64(0)
	for _, s := range f[11:15] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100
}

// switches is how often the threads of a process have gone to sleep.
func switches(pid int) (sum int64, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	for _, name := range files {
		n, err := statusField(name, "voluntary_ctxt_switches:")
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// ResidentMiB is a process's resident set.
func ResidentMiB(pid int) (float64, error) {
	kib, err := statusField(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
	return float64(kib) / 1024, err
}

// statusField is a number of a status file of procfs (proc_pid_status(5)).
func statusField(name, field string) (int64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s", name, field)
}
