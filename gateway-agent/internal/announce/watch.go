// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Resolved tells that Node asks for the MAC of Target and will, once the link
// that holds Target has answered, send to that.
type Resolved struct{ Node, Target netip.Addr }

// Watch reports the ARP requests that carry mark, until ctx ends; the channel is
// closed then. They are the broadcast ones for a tenant's gateway IP, which the
// kernel has handed to the tenant's link (plan.NeighbourTable). A request that
// was sent to a MAC is none: a node that probes a right entry has learned
// nothing, and one that probes a wrong entry is not answered. Events are
// dropped when the reader is slow: they are hints, the periodic sweep remains.
//
// Not reported are nodes that learn from an announcement; the caller knows when
// it made one.
func Watch(ctx context.Context, mark uint32) (<-chan Resolved, error) {
	file, err := arpSocket(mark)
	if err != nil {
		return nil, fmt.Errorf("watch ARP: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("watch ARP: %w", err)
	}
	const backlog = 256
	out := make(chan Resolved, backlog)
	stop := context.AfterFunc(ctx, func() { file.Close() })
	go func() {
		defer close(out)
		defer stop()
		defer file.Close()
		receive(raw, func(packet []byte, _ *unix.SockaddrLinklayer) {
			r, ok := request(packet)
			if !ok {
				return
			}
			select {
			case out <- r:
			default:
			}
		})
	}()
	return out, nil
}

// receive hands over each packet with where it came from, until the socket is
// closed.
func receive(raw syscall.RawConn, take func([]byte, *unix.SockaddrLinklayer)) {
	buf := make([]byte, 128)
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return failed != unix.EAGAIN && failed != unix.EINTR
		})
		if err != nil {
			return
		}
		// A failure is for example a link that went down; the socket stays.
		if sender, ok := from.(*unix.SockaddrLinklayer); failed == nil && ok {
			take(buf[:n], sender)
		}
	}
}

// arpSocket returns a packet socket for the ARP that arrives at any link,
// without link-layer headers, that the runtime can wait on. A mark other than 0
// leaves out the packets that do not carry it. The socket takes ARP only: one
// that took everything would cost a look at every packet.
func arpSocket(mark uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if mark != 0 {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, onlyMarked(mark))
	}
	if err == nil {
		proto := binary.NativeEndian.Uint16([]byte{etherARP >> 8, etherARP & 0xff})
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto})
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "arp"), nil
}

// onlyMarked is a filter of the classic kind: only it can see marks here.
func onlyMarked(mark uint32) *unix.SockFprog {
	const loadMark = 0xfffff000 + 20 // SKF_AD_OFF + SKF_AD_MARK
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: loadMark},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: mark},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
}

// request reads an ARP packet; ok is false unless it is a request by one
// address for another.
func request(b []byte) (Resolved, bool) {
	if len(b) < arpLen || binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != 0x0800 ||
		b[4] != 6 || b[5] != 4 || binary.BigEndian.Uint16(b[6:]) != arpRequest {
		return Resolved{}, false
	}
	r := Resolved{Node: netip.AddrFrom4([4]byte(b[14:18])), Target: netip.AddrFrom4([4]byte(b[24:28]))}
	return r, r.Node != r.Target && !r.Node.IsUnspecified()
}
