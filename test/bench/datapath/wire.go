// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"egress-gateway.io/shared/tenant"
	"egress-gateway.io/test/lab/namespace"
)

const (
	frameSize = 64 // on the wire, without the checksum that the NIC adds
	burst     = 64 // messages per system call

	farPort = 9000 // what pods send to
	podPort = 9001 // what they send from, in established flows
)

// message is struct mmsghdr of recvmmsg(2).
type message struct {
	header unix.Msghdr
	n      uint32
	_      [4]byte
}

// wire sends prepared Ethernet frames from one NIC, many per system call.
type wire struct {
	fd       int
	frames   [burst][frameSize]byte
	vectors  [burst]unix.Iovec
	messages [burst]message
}

func openWire(ns, nic string) (*wire, error) {
	w := &wire{fd: -1}
	err := namespace.Do(ns, func() (err error) {
		// Protocol 0: it sends only.
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		card, err := net.InterfaceByName(nic)
		if err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Ifindex: card.Index})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raw socket on %s of %s: %w", nic, ns, err), w.close())
	}
	for i := range w.frames {
		w.vectors[i].Base = &w.frames[i][0]
		w.vectors[i].SetLen(frameSize)
		w.messages[i].header.Iov = &w.vectors[i]
		w.messages[i].header.SetIovlen(1)
	}
	return w, nil
}

func (w *wire) close() error {
	if w.fd < 0 {
		return nil
	}
	return unix.Close(w.fd)
}

// udp makes frame i a UDP packet. For IPv4 the checksum of UDP is left out, which
// IPv6 does not allow.
func (w *wire) udp(i int, dst, src net.HardwareAddr, from, to netip.AddrPort) {
	f := w.frames[i][:]
	copy(f, dst)
	copy(f[6:], src)
	p := f[14:]
	at := 20 // where UDP begins
	if from.Addr().Is4() {
		f[12], f[13] = 0x08, 0x00
		p[0], p[1], p[8], p[9], p[10], p[11] = 0x45, 0, 64, unix.IPPROTO_UDP, 0, 0
		binary.BigEndian.PutUint16(p[2:], frameSize-14)
		a, b := from.Addr().As4(), to.Addr().As4()
		copy(p[12:], a[:])
		copy(p[16:], b[:])
		binary.BigEndian.PutUint16(p[10:], checksum(p[:20], 0))
	} else {
		f[12], f[13] = 0x86, 0xdd
		at = 40
		p[0], p[6], p[7] = 0x60, unix.IPPROTO_UDP, 64
		binary.BigEndian.PutUint16(p[4:], frameSize-14-40)
		a, b := from.Addr().As16(), to.Addr().As16()
		copy(p[8:], a[:])
		copy(p[24:], b[:])
	}
	u := p[at:]
	binary.BigEndian.PutUint16(u, from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	u[6], u[7] = 0, 0
	if at == 40 {
		// Over both addresses, and what else the pseudo header has (RFC 8200, 8.1);
		// 0 would say that there is none.
		sum := cmp.Or(checksum(p[8:], uint32(len(u))+unix.IPPROTO_UDP), 0xffff)
		binary.BigEndian.PutUint16(u[6:], sum)
	}
}

// checksum is the Internet checksum of b, whose length is even, and of sum.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum&0xffff + sum>>16
	return ^uint16(sum + sum>>16)
}

// send sends all frames. The kernel carries each through the whole topology
// before it takes the next: veth and bridges know no queues.
func (w *wire) send() error {
	for sent := 0; sent < burst; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(w.fd), uintptr(unsafe.Pointer(&w.messages[sent])), uintptr(burst-sent), 0, 0, 0)
		if errno == syscall.EINTR || errno == syscall.ENOBUFS {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("sendmmsg: %w", errno)
		}
		sent += int(n)
	}
	return nil
}

// sink counts the packets that reach a UDP port on any address.
type sink struct {
	fd       int
	buffer   [burst][frameSize]byte
	vectors  [burst]unix.Iovec
	messages [burst]message
}

func openSink(ns string, f tenant.Family, port int) (*sink, error) {
	s := &sink{fd: -1}
	err := namespace.Do(ns, func() (err error) {
		if s.fd, err = socket(f, unix.SOCK_DGRAM); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
			return err
		}
		return unix.Bind(s.fd, sockaddr(f, netip.Addr{}, port))
	})
	for i := range s.buffer {
		s.vectors[i].Base = &s.buffer[i][0]
		s.vectors[i].SetLen(frameSize)
		s.messages[i].header.Iov = &s.vectors[i]
		s.messages[i].header.SetIovlen(1)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket in %s: %w", ns, err), s.close())
	}
	return s, nil
}

func (s *sink) close() error {
	if s.fd < 0 {
		return nil
	}
	return unix.Close(s.fd)
}

// drain takes what has arrived and returns how many packets that were.
func (s *sink) drain() (int, error) {
	total := 0
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.messages[0])), burst, unix.MSG_DONTWAIT, 0, 0)
		if errno == syscall.EAGAIN {
			return total, nil
		}
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			return total, fmt.Errorf("recvmmsg: %w", errno)
		}
		if total += int(n); n < burst {
			return total, nil
		}
	}
}

// worker runs the whole load on one thread, bound to one processor: senders,
// receivers and, as veth hands packets on at once, the way between them.
type worker struct {
	cpu  int
	work chan func()
}

// startWorker makes a worker whose thread is in a namespace.
func startWorker(ns string, cpu int) (*worker, error) {
	w := &worker{cpu: cpu, work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var set unix.CPUSet
		set.Set(cpu)
		err := unix.SchedSetaffinity(0, &set)
		if err == nil {
			err = enter(ns)
		}
		ready <- err
		if err != nil {
			return
		}
		for f := range w.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("worker in %s on processor %d: %w", ns, cpu, err)
	}
	return w, nil
}

func (w *worker) do(f func() error) error {
	done := make(chan error)
	w.work <- func() { done <- f() }
	return <-done
}

func (w *worker) stop() { close(w.work) }
