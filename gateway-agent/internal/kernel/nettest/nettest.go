// SPDX-License-Identifier: Apache-2.0

// Package nettest gives tests network namespaces of their own: without names,
// gone with the process, whatever happens to it.
package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Wait looks until ok, for 5 seconds at most; then it fails the test and says
// what did not come. It is for what the kernel does a moment later, by itself.
func Wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Net is a network namespace, held by a thread that lives in it.
type Net struct {
	t    testing.TB
	tid  int
	work chan func()
}

// New makes a namespace with lo up. It fails the test unless run by root. The
// namespace ends with the test.
func New(t testing.TB) *Net {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: this test makes network namespaces and programs their kernel")
	}
	n := &Net{t: t, work: make(chan func())}
	ready := make(chan error)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine, and
		// the namespace with its last thread and socket.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		n.tid = unix.Gettid()
		ready <- err
		if err != nil {
			return
		}
		for f := range n.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatalf("needs root: new network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.work) })
	n.Run("ip link set lo up")
	// A link-local address that is still being probed asks nobody for seconds.
	n.Sysctl("net/ipv6/conf/all/accept_dad", "0")
	n.Sysctl("net/ipv6/conf/default/accept_dad", "0")
	return n
}

// Do runs f in the namespace. Sockets and processes that f makes belong to it,
// wherever they are used later.
func (n *Net) Do(f func()) {
	done := make(chan struct{})
	n.work <- func() { defer close(done); f() }
	<-done
}

// Try runs a shell command in the namespace.
func (n *Net) Try(command string) (string, error) {
	var out []byte
	var err error
	n.Do(func() { out, err = exec.Command("sh", "-c", command).CombinedOutput() })
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// Run is Try for commands that have to succeed. Lines are run one by one.
func (n *Net) Run(commands string) string {
	n.t.Helper()
	var all strings.Builder
	for line := range strings.Lines(commands) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		out, err := n.Try(strings.TrimSpace(line))
		if err != nil {
			n.t.Fatal(err)
		}
		all.WriteString(out)
	}
	return all.String()
}

// Sysctl writes a sysctl of the namespace.
func (n *Net) Sysctl(key, value string) {
	n.t.Helper()
	var err error
	n.Do(func() { err = os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644) })
	if err != nil {
		n.t.Fatal(err)
	}
}

// Give moves the NIC nic of n to other.
func (n *Net) Give(nic string, other *Net) {
	n.t.Helper()
	n.Run(fmt.Sprintf("ip link set %s netns %d", nic, other.tid))
}

// Wire joins two namespaces by a cable between the NICs nic of n and otherNIC
// of other; both are up.
func (n *Net) Wire(nic string, other *Net, otherNIC string) {
	n.t.Helper()
	n.Run(fmt.Sprintf("ip link add %s type veth peer name %s netns %d && ip link set %s up", nic, otherNIC, other.tid, nic))
	other.Run(fmt.Sprintf("ip link set %s up", otherNIC))
}
