// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

const (
	// noticesBuffer holds the notices of some thousand changes, in bytes.
	noticesBuffer = 8 << 20
	// noticesSettle is how long what has come may wait for the loop, which reads
	// the notices of its own changes right after them.
	noticesSettle = 10 * time.Millisecond
	// noticesPause is the least time between two reports.
	noticesPause = 50 * time.Millisecond
)

// notices is a socket that the kernel tells about changes of links, addresses
// and routes, whoever makes them. It does so within the call that makes the
// change: what has been done before one looks is among what one reads.
type notices struct {
	file *os.File
	raw  syscall.RawConn
	// lost is set where an overflow was seen: the kernel tells of it once.
	lost atomic.Bool
}

func openNotices() (*notices, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	n := &notices{file: os.NewFile(uintptr(fd), "rtnetlink")}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, noticesBuffer) != nil {
		// Not privileged for more than the system's limit: a flood of notices is
		// then lost earlier, which is told, and all is read anew.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, noticesBuffer)
	}
	filter := onlyOurRoutes()
	err = errors.Join(err,
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	if err == nil {
		n.raw, err = n.file.SyscallConn()
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes: %w", errors.Join(err, n.file.Close()))
	}
	return n, nil
}

// onlyOurRoutes is a filter of the socket: of routes those of our protocol, and
// of others everything. A router may have a million routes, which come and go.
func onlyOurRoutes() []unix.SockFilter {
	const (
		kindAt     = 4                     // nlmsg_type (netlink(7)), which the filter reads as big endian
		protocolAt = unix.NLMSG_HDRLEN + 5 // rtm_protocol (rtnetlink(7))
	)
	kind := func(k uint16) uint32 {
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, k)))
	}
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: kindAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: kind(unix.RTM_NEWROUTE), Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: kind(unix.RTM_DELROUTE), Jf: 2},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: protocolAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: plan.Protocol, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
}

// read hands over what the kernel has told since the last call, and does not
// wait. lost says that it had told more than it could keep: everything has to be
// read anew.
func (n *notices) read(each func(kind uint16, message []byte)) (lost bool, err error) {
	buffer := make([]byte, 64<<10)
	for {
		size, err := n.receive(buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return n.lost.Swap(false), nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS):
		case err != nil:
			return true, fmt.Errorf("read notices of changes: %w", err)
		default:
			messages, err := syscall.ParseNetlinkMessage(buffer[:size])
			if err != nil {
				return true, fmt.Errorf("read notices of changes: %w", err)
			}
			for _, m := range messages {
				each(m.Header.Type, m.Data)
			}
		}
	}
}

func (n *notices) receive(buffer []byte, flags int) (size int, err error) {
	control := n.raw.Control(func(fd uintptr) { size, _, err = unix.Recvfrom(int(fd), buffer, flags) })
	if errors.Is(err, unix.ENOBUFS) {
		n.lost.Store(true)
	}
	return size, errors.Join(control, err)
}

// watch calls report when something has come that nobody has read since, until
// ctx ends.
func (n *notices) watch(ctx context.Context, report func()) error {
	stop := context.AfterFunc(ctx, func() { n.file.SetReadDeadline(time.Now()) })
	defer stop()
	for ctx.Err() == nil {
		if err := n.wait(); err != nil && ctx.Err() == nil {
			return fmt.Errorf("wait for notices of changes: %w", err)
		}
		for pause(ctx, noticesSettle) && n.pending() {
			report()
			if !pause(ctx, noticesPause) {
				break
			}
		}
	}
	return nil
}

// wait returns when the kernel tells something after the call.
func (n *notices) wait() error {
	called := false
	return n.raw.Read(func(uintptr) bool {
		again := called
		called = true
		return again || n.pending()
	})
}

func (n *notices) pending() bool {
	_, err := n.receive(make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK)
	return !errors.Is(err, unix.EAGAIN)
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
