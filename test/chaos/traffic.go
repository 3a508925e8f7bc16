// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/lab/namespace"
)

// beat is how often a sender works, and perBeat what it does each time: 2 new
// flows and 2 packets of younger ones every 4 ms are 1,000 packets a second and
// node, with their answers and handshakes about 3,000. That leaves two cores
// room for all else that goes on.
const (
	beat    = 4 * time.Millisecond
	perBeat = 2
	// young flows live until their place in the ring comes round: about a second.
	youngFlows = 512
)

// speaker is a pod that a sender speaks for.
type speaker struct {
	address netip.Addr
	to      netip.AddrPort
}

// sender makes many short flows from all pods of one node. It is one thread that
// lives in the namespace of the node's pods; nothing in it ever blocks.
type sender struct {
	speakers []speaker
	random   *rand.Rand
	flows    [youngFlows]flow
	next     int
}

type flow struct {
	fd  int
	tcp bool
}

// startSender sends until ctx ends; done is closed when all its sockets are.
func startSender(ctx context.Context, w *lab.Lab, node string, speakers []speaker, seed uint64) (done chan error) {
	s := &sender{speakers: speakers, random: rand.New(rand.NewPCG(seed, 1))}
	for i := range s.flows {
		s.flows[i].fd = -1
	}
	done = make(chan error, 1)
	go func() {
		err := namespace.Do(w.Namespace(lab.Part(node+"-pods")), func() error { return s.run(ctx) })
		if err != nil {
			err = fmt.Errorf("traffic from %s: %w", node, err)
		}
		done <- err
	}()
	return done
}

func (s *sender) run(ctx context.Context) error {
	defer func() {
		for i := range s.flows {
			s.end(&s.flows[i])
		}
	}()
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for range perBeat {
			if err := s.begin(); err != nil {
				return err
			}
			s.goOn()
		}
	}
}

// begin replaces the oldest flow by a new one of some pod.
func (s *sender) begin() error {
	f := &s.flows[s.next]
	s.next = (s.next + 1) % youngFlows
	s.end(f)
	from := s.speakers[s.random.IntN(len(s.speakers))]
	f.tcp = s.random.IntN(3) == 0
	kind := unix.SOCK_DGRAM
	if f.tcp {
		kind = unix.SOCK_STREAM
	}
	family := unix.AF_INET
	if from.address.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f.fd = fd
	// The port is chosen with the peer, so that they do not run out.
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return err
	}
	if f.tcp && s.random.IntN(4) == 0 { // some end with a reset
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from.address, 0))); err != nil {
		return fmt.Errorf("bind to pod %s: %w", from.address, err)
	}
	err = unix.Connect(fd, sockaddr(from.to))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) && !refused(err) {
		return fmt.Errorf("connect pod %s: %w", from.address, err)
	}
	if !f.tcp {
		f.say()
	}
	return nil
}

// goOn sends on a flow that is some time old.
func (s *sender) goOn() {
	f := &s.flows[s.random.IntN(youngFlows)]
	if f.fd >= 0 {
		f.say()
	}
}

// say sends a packet. That the network refuses it is what happens to pods of a
// tenant that is away; the packets of the wire are looked at, not the senders.
func (f *flow) say() { _, _ = unix.Write(f.fd, []byte("chaos")) }

func (s *sender) end(f *flow) {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}

// refused tells the errors that a network may answer with.
func refused(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ECONNREFUSED, unix.EACCES, unix.EPERM, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}
