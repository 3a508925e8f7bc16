// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// RaiseNeighbourLimits makes room for labs with more than some hundred tenants:
// the kernel counts the neighbours of all namespaces together, by family, and
// drops packets beyond 1024. This is a setting of the machine, the only one that the
// lab touches, so the caller asks for it, and calls restore at the end.
func RaiseNeighbourLimits() (restore func() error, err error) {
	const limit = 65536
	var undo []func() error
	restore = func() error {
		var errs []error
		for _, f := range undo {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	// The highest first: the kernel wants them in order.
	for i := range 6 {
		path := fmt.Sprintf("/proc/sys/net/ipv%d/neigh/default/gc_thresh%d", 4+i/3*2, 3-i%3)
		old, err := os.ReadFile(path)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("raise neighbour limit: %w", err), restore())
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(old))); err == nil && n >= limit {
			continue
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(limit)), 0o644); err != nil {
			return nil, errors.Join(fmt.Errorf("raise neighbour limit: %w", err), restore())
		}
		undo = append(undo, func() error { return os.WriteFile(path, old, 0o644) })
	}
	return restore, nil
}
