// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conflict is a host that claims an address of ours.
type Conflict struct {
	IP  netip.Addr
	MAC string
}

// probesAtOnce are sent without a pause, on each NIC, and the pause after that:
// 5,000 a second keep the queues of a switch and of its hosts from overflowing.
const (
	probesAtOnce = 50
	probePause   = 10 * time.Millisecond
)

// Probe asks the network of each target's Dev, which must be a NIC of the VM
// itself, whether anybody has the address (RFC 5227 section 2.1.1). It sends one
// ARP probe for each, all at once, and waits for answers for that long after the
// last one; a host on the same switch answers within a millisecond. The result
// holds the addresses that somebody has. IPv6 addresses are not asked for.
func (a *Announcer) Probe(ctx context.Context, targets []Target, wait time.Duration) (map[netip.Addr]Conflict, error) {
	file, err := arpSocket(0)
	if err != nil {
		return nil, fmt.Errorf("probe addresses: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("probe addresses: %w", errors.Join(err, file.Close()))
	}
	asked, found := make(map[netip.Addr][]byte, len(targets)), make(map[netip.Addr]Conflict)
	done := make(chan struct{})
	answers := make(chan Conflict, len(targets)+1)
	go func() {
		defer close(done)
		receive(raw, func(b []byte, _ *unix.SockaddrLinklayer) {
			if mac, ip, ok := arpSender(b); ok {
				select {
				case answers <- Conflict{ip, mac.String()}:
				default: // more than one for each: they say nothing new
				}
			}
		})
	}()
	err = a.sendProbes(ctx, targets, asked)
	if err == nil {
		err = a.collect(ctx, answers, asked, found, wait)
	}
	err = errors.Join(err, closeFile(file))
	<-done
	return found, err
}

func closeFile(f *os.File) error {
	if err := f.Close(); err != nil {
		return fmt.Errorf("probe addresses: %w", err)
	}
	return nil
}

// sendProbes fills in asked: the MAC that each was asked with.
func (a *Announcer) sendProbes(ctx context.Context, targets []Target, asked map[netip.Addr][]byte) error {
	sent := make(map[string]int)
	for _, t := range targets {
		if !t.IP.Is4() {
			continue
		}
		index, mac, err := a.link(t.Dev)
		if err != nil {
			return fmt.Errorf("probe %s on %s: %w", t.IP, t.Dev, err)
		}
		asked[t.IP] = slices.Clone(mac)
		frame := arpProbe(mac, t.IP)
		to := unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
		copy(to.Addr[:], frame[:6])
		if err := unix.Sendto(a.fd, frame, 0, &to); err != nil {
			return fmt.Errorf("probe %s on %s: %w", t.IP, t.Dev, err)
		}
		if sent[t.Dev]++; sent[t.Dev]%probesAtOnce == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(probePause):
			}
		}
	}
	return nil
}

func (a *Announcer) collect(ctx context.Context, answers <-chan Conflict, asked map[netip.Addr][]byte, found map[netip.Addr]Conflict, wait time.Duration) error {
	if len(asked) == 0 {
		return nil
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-over.C:
			return nil
		case c := <-answers:
			if own, ok := asked[c.IP]; ok && c.MAC != net.HardwareAddr(own).String() {
				found[c.IP] = c
			}
		}
	}
}

// arpProbe asks for ip without claiming anything: the sender has no address.
func arpProbe(mac net.HardwareAddr, ip netip.Addr) []byte {
	f := gratuitousARP(mac, ip, arpRequest)
	clear(f[28:32]) // the sender's address
	return f
}

// arpSender returns who sent an ARP packet, and as what.
func arpSender(b []byte) (net.HardwareAddr, netip.Addr, bool) {
	if len(b) < arpLen || binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != 6 || b[5] != 4 {
		return nil, netip.Addr{}, false
	}
	ip := netip.AddrFrom4([4]byte(b[14:18]))
	return bytes.Clone(b[8:14]), ip, !ip.IsUnspecified()
}

// Conflicts reports other hosts that use an address of ours as their own, until
// ctx ends; the channel is closed then. at tells the link of such an address.
// nics are the VM's NICs: what comes from one of their MACs is the VM itself.
// Reports are dropped when the reader is slow.
func Conflicts(ctx context.Context, at func(netip.Addr) (string, bool), nics ...string) (<-chan Conflict, error) {
	file, err := arpSocket(0)
	if err != nil {
		return nil, fmt.Errorf("watch for conflicts: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("watch for conflicts: %w", errors.Join(err, file.Close()))
	}
	const backlog = 64
	out := make(chan Conflict, backlog)
	stop := context.AfterFunc(ctx, func() { file.Close() })
	go func() {
		defer close(out)
		defer stop()
		defer file.Close()
		receive(raw, func(b []byte, _ *unix.SockaddrLinklayer) {
			mac, ip, ok := arpSender(b)
			if !ok {
				return
			}
			if dev, ours := at(ip); !ours || !foreign(raw, mac, append([]string{dev}, nics...)) {
				return
			}
			select {
			case out <- Conflict{ip, mac.String()}:
			default:
			}
		})
	}()
	return out, nil
}

// foreign tells whether mac is none of the links'. A link that is gone has no
// MAC, and its address is ours no more.
func foreign(raw syscall.RawConn, mac net.HardwareAddr, links []string) bool {
	for _, name := range links {
		var own net.HardwareAddr
		var failed error
		err := raw.Control(func(fd uintptr) { _, own, failed = linkOf(int(fd), name) })
		if err != nil || failed != nil || bytes.Equal(own, mac) {
			return false
		}
	}
	return true
}
