// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Resolved tells that Node asks for the MAC of Target and will, once the link
// that holds Target has answered, send to that.
type Resolved struct{ Node, Target netip.Addr }

// Watch reports the ARP requests that arrive at nic by broadcast, until ctx
// ends; the channel is closed then. A request to nic's own MAC is none: that is
// a node with a wrong entry probing it, which nobody answers. Events are
// dropped when the reader is slow: they are hints, the periodic sweep remains.
//
// The socket takes ARP only: one that saw nic's outgoing answers too would cost
// a copy of every packet that leaves there. Not reported are nodes that learn
// from an announcement; the caller knows when it made one.
func Watch(ctx context.Context, nic string) (<-chan Resolved, error) {
	file, err := arpSocket(nic)
	if err != nil {
		return nil, fmt.Errorf("watch ARP on %s: %w", nic, err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("watch ARP on %s: %w", nic, err)
	}
	const backlog = 256
	out := make(chan Resolved, backlog)
	stop := context.AfterFunc(ctx, func() { file.Close() })
	go func() {
		defer close(out)
		defer stop()
		defer file.Close()
		receive(raw, func(packet []byte) {
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

// receive hands over each broadcast packet, until the socket is closed.
func receive(raw syscall.RawConn, take func([]byte)) {
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
		if sender, ok := from.(*unix.SockaddrLinklayer); failed == nil && ok && sender.Pkttype == unix.PACKET_BROADCAST {
			take(buf[:n])
		}
	}
}

// arpSocket returns a packet socket for the ARP that arrives at nic, without
// link-layer headers, that the runtime can wait on.
func arpSocket(nic string) (*os.File, error) {
	link, err := net.InterfaceByName(nic)
	if err != nil {
		return nil, err
	}
	proto := binary.NativeEndian.Uint16([]byte{etherARP >> 8, etherARP & 0xff})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "arp:"+nic), nil
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
