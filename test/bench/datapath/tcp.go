// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"egress-gateway.io/shared/tenant"
	"egress-gateway.io/test/lab/namespace"
)

const (
	tcpPort  = 8080
	together = 32 // connections that are open at once
	patience = 2000
)

// listen opens a listening socket of the host outside. One for IPv6 takes
// connections over IPv4 as well.
func (t *topology) listen() (fd int, err error) {
	fd = -1
	family := t.families[len(t.families)-1]
	err = namespace.Do(t.far, func() (err error) {
		if fd, err = socket(family, unix.SOCK_STREAM); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(family, netip.Addr{}, tcpPort)); err != nil {
			return err
		}
		return unix.Listen(fd, 1024)
	})
	if err != nil && fd >= 0 {
		err = errors.Join(err, unix.Close(fd))
	}
	return fd, err
}

// dial begins a connection of a pod; the calling thread is on the node.
func dial(from, to netip.Addr) (int, error) {
	family := tenant.FamilyOf(from)
	fd, err := socket(family, unix.SOCK_STREAM)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	if err := unix.Bind(fd, sockaddr(family, from, 0)); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	if err := unix.Connect(fd, sockaddr(family, to, tcpPort)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return -1, errors.Join(fmt.Errorf("connect %s to %s: %w", from, to, err), unix.Close(fd))
	}
	return fd, nil
}

// ready waits for what mostly is the case already.
func ready(fd int, events int16) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(p, patience)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = fmt.Errorf("a TCP socket waited %d ms in vain", patience)
		}
		return err
	}
}

// until repeats a call on fd until it no longer would block.
func until[T any](fd int, events int16, call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return v, err
		}
		if err := ready(fd, events); err != nil {
			return v, err
		}
	}
}

// connections opens connections, sends one byte on each, and closes them.
type connections struct {
	listener int
	pair     pair
	next     [2]int
	byte     [1]byte
}

func (l *connections) step(g int) (float64, error) {
	var client, server [together]int
	for i := range client {
		f := (l.next[g] + i) % flows
		fd, err := dial(l.pair[g].pod(f), l.pair[g].destination(f))
		if err != nil {
			return 0, err
		}
		client[i] = fd
	}
	l.next[g] += together
	for _, fd := range client {
		if _, err := until(fd, unix.POLLOUT, func() (int, error) { return unix.Write(fd, l.byte[:]) }); err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
	}
	for i := range server {
		fd, err := until(l.listener, unix.POLLIN, func() (int, error) {
			fd, _, err := unix.Accept4(l.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return fd, err
		})
		if err != nil {
			return 0, fmt.Errorf("accept: %w", err)
		}
		server[i] = fd
	}
	for i, fd := range server {
		if _, err := until(fd, unix.POLLIN, func() (int, error) { return unix.Read(fd, l.byte[:]) }); err != nil {
			return 0, fmt.Errorf("read: %w", err)
		}
		if err := unix.Close(client[i]); err != nil {
			return 0, err
		}
	}
	for i := range server {
		if err := unix.Close(server[i]); err != nil {
			return 0, err
		}
	}
	return together, nil
}

// stream is one connection through each gateway that sends all it can.
type stream struct {
	client, server [2]int
	buffer         []byte
}

// openStreams connects the streams; the calling thread is on the node.
func openStreams(listener int, p pair) (*stream, error) {
	s := &stream{client: [2]int{-1, -1}, server: [2]int{-1, -1}, buffer: make([]byte, 1<<20)}
	for g, gw := range p {
		var err error
		if s.client[g], err = dial(gw.pod(g), gw.destination(g)); err == nil {
			s.server[g], err = until(listener, unix.POLLIN, func() (int, error) {
				fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
				return fd, err
			})
		}
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *stream) close() error {
	var errs []error
	for _, fd := range append(s.client[:], s.server[:]...) {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// step counts bits.
func (s *stream) step(g int) (float64, error) {
	if _, err := unix.Write(s.client[g], s.buffer); err != nil && !errors.Is(err, unix.EAGAIN) {
		return 0, fmt.Errorf("write: %w", err)
	}
	bits := 0.0
	for {
		n, err := unix.Read(s.server[g], s.buffer)
		if errors.Is(err, unix.EAGAIN) {
			return bits, nil
		}
		if err != nil {
			return bits, fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			return bits, errors.New("the stream ended")
		}
		bits += 8 * float64(n)
	}
}

// forget empties connection tracking, so that no table is full.
func (g gateway) forget(ctx context.Context) error {
	if g.name == plain {
		return nil
	}
	return run(ctx, g.ns, "", "conntrack", "-F")
}
