// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// probesAtOnce are sent without a pause, on each NIC, and the pause after that:
// 5,000 a second keep the queues of a switch and of its hosts from overflowing.
const (
	probesAtOnce = 50
	probePause   = 10 * time.Millisecond
)

// Probe asks the network of each target's Dev, which must be a NIC of the VM
// itself, whether anybody has the address (RFC 5227 section 2.1.1, RFC 4862
// section 5.4). It sends one probe for each, all at once, and waits for answers
// for that long after the last one; a host on the same switch answers within a
// millisecond. The result holds the addresses that somebody has, or asks for as
// we do.
func (a *Announcer) Probe(ctx context.Context, targets []Target, wait time.Duration) (map[netip.Addr]Conflict, error) {
	if len(targets) == 0 {
		return nil, nil
	}
	e := ears{asked: make(map[netip.Addr]bool, len(targets)), heard: make(chan Conflict, len(targets)+1)}
	err := e.open(a, targets)
	found := make(map[netip.Addr]Conflict)
	if err == nil {
		var own map[netip.Addr]net.HardwareAddr
		if own, err = a.sendProbes(ctx, targets); err == nil {
			err = collect(ctx, e.heard, own, found, wait)
		}
	}
	if err = errors.Join(err, e.close()); err != nil {
		err = fmt.Errorf("probe addresses: %w", err)
	}
	return found, err
}

// ears hear what is said of the addresses that are asked for.
type ears struct {
	asked   map[netip.Addr]bool
	heard   chan Conflict
	files   []*os.File
	readers sync.WaitGroup
}

// open listens from before the first probe is sent.
func (e *ears) open(a *Announcer, targets []Target) error {
	four, six := false, false
	for _, t := range targets {
		e.asked[t.IP] = true
		four, six = four || t.IP.Is4(), six || t.IP.Is6()
	}
	if four {
		file, err := packetSocket(etherARP, nil)
		if err := e.listen(file, err, func(b []byte, _ unix.Sockaddr) (net.HardwareAddr, netip.Addr, bool) { return arpAnswer(b) }); err != nil {
			return err
		}
	}
	if !six {
		return nil
	}
	file, err := discoverySocket()
	if err == nil {
		err = a.join(file, targets)
	}
	return e.listen(file, err, func(b []byte, from unix.Sockaddr) (net.HardwareAddr, netip.Addr, bool) {
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			return nil, netip.Addr{}, false
		}
		m, ok := discoveryPacket(b, link.Addr[:6])
		if !ok {
			return nil, netip.Addr{}, false
		}
		return m.answers()
	})
}

// join lets the NICs hear other hosts that ask for the same addresses, until
// file is closed. Answers go to all nodes.
func (a *Announcer) join(file *os.File, targets []Target) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for _, t := range targets {
			if !t.IP.Is6() {
				continue
			}
			index, _, err := linkOf(a.out.fd, t.Dev)
			if err != nil {
				failed = fmt.Errorf("%s on %s: %w", t.IP, t.Dev, err)
				return
			}
			_, group := solicitedNode(t.IP)
			member := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
			copy(member.Address[:], group)
			if failed = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &member); failed != nil {
				return
			}
		}
	})
	return errors.Join(err, failed)
}

// listen takes file over, unless err tells that there is none. What it can not
// hand on at once is more than one answer for each address, and says nothing new.
func (e *ears) listen(file *os.File, err error, parse func([]byte, unix.Sockaddr) (net.HardwareAddr, netip.Addr, bool)) error {
	if file != nil {
		e.files = append(e.files, file)
	}
	if err != nil {
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	e.readers.Go(func() {
		receive(raw, func(b []byte, from unix.Sockaddr) {
			mac, ip, ok := parse(b, from)
			if !ok || !e.asked[ip] {
				return
			}
			select {
			case e.heard <- Conflict{ip, mac.String()}:
			default:
			}
		})
	})
	return nil
}

func (e *ears) close() error {
	var errs []error
	for _, f := range e.files {
		errs = append(errs, f.Close())
	}
	e.readers.Wait()
	return errors.Join(errs...)
}

// sendProbes returns the MAC that each was asked with. The NICs send beside each
// other: each has its own network, and its own pace.
func (a *Announcer) sendProbes(ctx context.Context, targets []Target) (map[netip.Addr]net.HardwareAddr, error) {
	on := make(map[string][]Target)
	for _, t := range targets {
		on[t.Dev] = append(on[t.Dev], t)
	}
	var mu sync.Mutex
	var sending sync.WaitGroup
	var errs []error
	own := make(map[netip.Addr]net.HardwareAddr, len(targets))
	for dev, list := range on {
		sending.Go(func() {
			mac, err := a.sendFrom(ctx, dev, list)
			mu.Lock()
			defer mu.Unlock()
			for _, t := range list {
				own[t.IP] = mac
			}
			errs = append(errs, err)
		})
	}
	sending.Wait()
	return own, errors.Join(errs...)
}

// sendFrom sends the probes of one NIC, and returns its MAC.
func (a *Announcer) sendFrom(ctx context.Context, dev string, targets []Target) (net.HardwareAddr, error) {
	index, mac, err := linkOf(a.out.fd, dev)
	if err != nil {
		return nil, fmt.Errorf("%s on %s: %w", targets[0].IP, dev, err)
	}
	for i, t := range targets {
		var frame []byte
		if t.IP.Is4() {
			frame = arpProbe(mac, t.IP)
		} else {
			frame = detection(mac, t.IP)
		}
		to := unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
		copy(to.Addr[:], frame[:6])
		if err := unix.Sendto(a.out.fd, frame, 0, &to); err != nil {
			return nil, fmt.Errorf("%s on %s: %w", t.IP, dev, err)
		}
		if (i+1)%probesAtOnce == 0 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(probePause):
			}
		}
	}
	return mac, nil
}

// collect takes down who has what. What has the MAC that asked is our own probe,
// which some switch has sent back.
func collect(ctx context.Context, heard <-chan Conflict, own map[netip.Addr]net.HardwareAddr, found map[netip.Addr]Conflict, wait time.Duration) error {
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over.C:
			return nil
		case c := <-heard:
			if c.MAC != own[c.IP].String() {
				found[c.IP] = c
			}
		}
	}
}
