// SPDX-License-Identifier: Apache-2.0

// Package namespace makes, removes and enters named network namespaces, the
// ones that `ip netns` shows.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Dir holds one file per named namespace, as iproute2 wants it.
const Dir = "/run/netns"

// Create makes a namespace with its loopback up. The name must be free.
func Create(name string) error {
	if err := shareDir(); err != nil {
		return err
	}
	made := make(chan error, 1)
	go func() {
		// A thread of its own: it is in the new namespace when we are done with
		// it, and ends with this goroutine because it is never unlocked.
		runtime.LockOSThread()
		ns, err := netns.NewNamed(name)
		if err == nil {
			err = ns.Close()
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return fmt.Errorf("create network namespace %s: %w", name, err)
	}
	return Do(name, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo in %s: %w", name, err)
		}
		return netlink.LinkSetUp(lo)
	})
}

// Delete removes the name of a namespace. The kernel ends the namespace itself
// once no process and no socket uses it. A missing name is no error.
func Delete(name string) error {
	path := filepath.Join(Dir, name)
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete network namespace: %w", err)
	}
	return nil
}

// List returns the names that begin with prefix.
func List(prefix string) ([]string, error) {
	entries, err := os.ReadDir(Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Exists tells whether a namespace of this name is there.
func Exists(name string) bool {
	_, err := os.Stat(filepath.Join(Dir, name))
	return err == nil
}

// Do calls f on a thread that is in the named namespace. Sockets that f opens
// stay in that namespace; goroutines that f starts do not run in it. Note that
// /sys is not switched, and that of /proc only /proc/thread-self/net and
// /proc/sys/net are.
func Do(name string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("get own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = within(name, f)
		// If the way home fails the thread stays locked, and so ends here
		// instead of serving other goroutines from the wrong namespace.
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread()
		} else {
			err = errors.Join(err, fmt.Errorf("return from network namespace %s: %w", name, back))
		}
		done <- err
	}()
	return <-done
}

func within(name string, f func() error) error {
	ns, err := netns.GetFromPath(filepath.Join(Dir, name))
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	return f()
}

// Netlink returns a netlink handle that works on the named namespace. The
// caller closes it; while it is open the namespace lives on.
func Netlink(name string) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(filepath.Join(Dir, name))
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", name, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", name, err)
	}
	return h, nil
}

// Sysctl writes the settings below /proc/sys/net of the named namespace, in
// the given order: {"ipv4/ip_forward", "1"}.
func Sysctl(name string, settings ...[2]string) error {
	return Do(name, func() error {
		for _, s := range settings {
			if err := os.WriteFile("/proc/sys/net/"+s[0], []byte(s[1]), 0o644); err != nil {
				return fmt.Errorf("set sysctl in %s: %w", name, err)
			}
		}
		return nil
	})
}

// shareDir makes Dir a shared mount, as `ip netns add` does. Else a process
// with a mount namespace of its own (`ip netns exec` makes one) would hold
// copies of the mounts below it, and with them the namespaces, after Delete.
func shareDir() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", Dir, err)
	}
	err := unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err := unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", Dir, err)
		}
		err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", Dir, err)
	}
	return nil
}
