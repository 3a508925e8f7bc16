// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"math/bits"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// listen hands the packets of a protocol (as in linux/if_ether.h) that arrive at
// nic to each, without the link's header and not more than the first most bytes
// of them, until the test ends.
func (n *Net) listen(nic string, protocol uint16, most int, each func(packet []byte, protocol uint16)) {
	n.t.Helper()
	var fd int
	var err error
	n.Do(func() {
		var link *net.Interface
		if link, err = net.InterfaceByName(nic); err != nil {
			return
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		timeout := unix.NsecToTimeval(int64(50 * time.Millisecond))
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(protocol), Ifindex: link.Index})
	})
	if err != nil {
		n.t.Fatalf("listen on %s: %v", nic, err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, most); ; {
			select {
			case <-stop:
				return
			default:
			}
			got, from, err := unix.Recvfrom(fd, buf, 0)
			link, ok := from.(*unix.SockaddrLinklayer)
			if err == nil && ok && link.Pkttype != unix.PACKET_OUTGOING {
				each(buf[:got], bits.ReverseBytes16(link.Protocol))
			}
		}
	}()
	n.t.Cleanup(func() { close(stop); <-done; unix.Close(fd) })
}

// Recording keeps the packets of one family that arrive at a NIC.
type Recording struct {
	mu      sync.Mutex
	packets [][]byte
}

// Record keeps the IPv4 packets that arrive at nic until the test ends.
func (n *Net) Record(nic string) *Recording {
	n.t.Helper()
	return n.record(nic, unix.ETH_P_IP)
}

// RecordIPv6 keeps the IPv6 packets that arrive at nic until the test ends.
func (n *Net) RecordIPv6(nic string) *Recording {
	n.t.Helper()
	return n.record(nic, unix.ETH_P_IPV6)
}

func (n *Net) record(nic string, protocol uint16) *Recording {
	n.t.Helper()
	r := &Recording{}
	n.listen(nic, protocol, 1<<16, func(packet []byte, _ uint16) {
		if len(packet) < 20 {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.packets = append(r.packets, slices.Clone(packet))
	})
	return r
}

// Packets returns those so far. Packets that were sent before the call are in
// it.
func (r *Recording) Packets() [][]byte {
	time.Sleep(30 * time.Millisecond) // what is on the veth's queue arrives within microseconds
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.packets)
}
