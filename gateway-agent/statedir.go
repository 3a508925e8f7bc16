// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/reconcile"
)

// openState opens the state directory and takes it for this process, until
// unlock is called. It returns reconcile.ErrRunning if another process has it.
func openState(dir string) (store *reconcile.Store, unlock func() error, err error) {
	if store, err = reconcile.OpenStore(dir); err != nil {
		return nil, nil, err
	}
	if unlock, err = store.Lock(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", dir, err)
	}
	return store, unlock, nil
}

// checkState says what is wrong with the state directory, with the remedy:
// unusable is what openState said.
func checkState(dir string, unusable error) (fatal, warning error) {
	if unusable != nil {
		return fmt.Errorf("%w; set GATEWAY_STATE_DIR to a writable directory; in a container add: %s", unusable, volumeFlag(dir)), nil
	}
	if err := durable(dir); err != nil {
		return nil, fmt.Errorf("state directory: %w; in a container add: %s", err, volumeFlag(dir))
	}
	return nil, nil
}

func volumeFlag(dir string) string { return "-v egress-gateway:" + dir }

// durable returns an error if dir goes with the container, so that tenants
// would not come back after an upgrade, or after a reboot without NATS. A
// container is told by its root, an overlay.
func durable(dir string) error {
	var root, fs unix.Statfs_t
	if err := errors.Join(unix.Statfs("/", &root), unix.Statfs(dir, &fs)); err != nil {
		return err
	}
	if root.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return nil
	}
	if fs.Type == unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is a tmpfs, whose content goes with the container", dir)
	}
	var here, above unix.Statx_t
	if err := errors.Join(unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID, &here), unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID, &above)); err != nil {
		return err
	}
	if here.Mask&unix.STATX_MNT_ID != 0 && here.Mnt_id == above.Mnt_id { // known from Linux 5.8 on
		return fmt.Errorf("%s is no volume, its content goes with the container", dir)
	}
	return nil
}
