// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Resolved tells that Node asks for the MAC of Target and will, once the link
// that holds Target has answered, send to that.
type Resolved struct{ Node, Target netip.Addr }

// Watch reports the ARP requests and neighbour solicitations that carry mark,
// until ctx ends; the channel is closed then. They are the broadcast ones for a
// tenant's gateway IP, which the kernel has handed to the tenant's link
// (plan.NeighbourTable). A request that was sent to a MAC is none: a node that
// probes a right entry has learned nothing, and one that probes a wrong entry is
// not answered. Events are dropped when the reader is slow: they are hints, the
// periodic sweep remains.
//
// Not reported are nodes that learn from an announcement; the caller knows when
// it made one.
func Watch(ctx context.Context, mark uint32) (<-chan Resolved, error) {
	arp, err := packetSocket(etherARP, onlyMarked(mark))
	if err != nil {
		return nil, fmt.Errorf("watch ARP: %w", err)
	}
	ns, err := packetSocket(etherIPv6, onlyMarked(mark))
	if err != nil {
		return nil, fmt.Errorf("watch neighbour discovery: %w", errors.Join(err, arp.Close()))
	}
	const backlog = 256
	out := make(chan Resolved, backlog)
	var readers sync.WaitGroup
	read := func(file *os.File, parse func([]byte) (Resolved, bool)) {
		defer file.Close()
		defer context.AfterFunc(ctx, func() { file.Close() })()
		raw, err := file.SyscallConn()
		if err != nil {
			return // closed
		}
		receive(raw, func(packet []byte, _ unix.Sockaddr) {
			r, ok := parse(packet)
			if !ok {
				return
			}
			select {
			case out <- r:
			default:
			}
		})
	}
	readers.Go(func() { read(arp, request) })
	readers.Go(func() { read(ns, solicitation) })
	go func() {
		readers.Wait()
		close(out)
	}()
	return out, nil
}

// receive hands over each packet with where it came from, until the socket is
// closed.
func receive(raw syscall.RawConn, take func([]byte, unix.Sockaddr)) {
	buf := make([]byte, 512)
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
		if failed == nil {
			take(buf[:n], from)
		}
	}
}

// packetSocket returns a socket for the packets of one protocol that arrive at
// any link, without link-layer headers, that the runtime can wait on. The kernel
// runs filter, if there is one, on each packet of the protocol, and copies only
// what that takes.
func packetSocket(protocol uint16, filter []unix.SockFilter) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if filter != nil {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, sockFprog(filter))
	}
	if err == nil {
		proto := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto})
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}

func sockFprog(code []unix.SockFilter) *unix.SockFprog {
	return &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
}

// onlyMarked is a filter of the classic kind: only it can see marks here.
func onlyMarked(mark uint32) []unix.SockFilter {
	const loadMark = 0xfffff000 + 20 // SKF_AD_OFF + SKF_AD_MARK
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: loadMark},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: mark},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
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

// solicitation reads an IPv6 packet; ok is false unless one address asks for
// another in it. The asking address may be a link-local one. Duplicate address
// detection, which asks from no address, is no node that looks for its way.
func solicitation(b []byte) (Resolved, bool) {
	m, ok := discoveryPacket(b, nil)
	r := Resolved{Node: m.source, Target: m.target}
	return r, ok && m.solicits && r.Node != r.Target && !r.Node.IsUnspecified()
}
