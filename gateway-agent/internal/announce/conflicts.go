// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conflict is a host that claims an address of ours.
type Conflict struct {
	IP  netip.Addr
	MAC string
}

// Conflicts reports other hosts that use an address of ours as their own, until
// ctx ends; the channel is closed then. at tells the link of such an address.
// nics are the VM's NICs: what comes from one of their MACs is the VM itself.
// Reports are dropped when the reader is slow. A kernel without IPv6 is heard for
// ARP alone.
func Conflicts(ctx context.Context, at func(netip.Addr) (string, bool), nics ...string) (<-chan Conflict, error) {
	const backlog = 64
	out := make(chan Conflict, backlog)
	arp, err := packetSocket(etherARP, nil)
	if err != nil {
		return nil, fmt.Errorf("watch for conflicts: %w", err)
	}
	nd, err := claimSocket()
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("watch for conflicts: %w", errors.Join(err, arp.Close()))
	}
	var readers sync.WaitGroup
	read := func(file *os.File, claim func([]byte, unix.Sockaddr) (net.HardwareAddr, netip.Addr, bool)) {
		defer file.Close()
		defer context.AfterFunc(ctx, func() { file.Close() })()
		raw, err := file.SyscallConn()
		if err != nil {
			return // closed
		}
		receive(raw, func(b []byte, from unix.Sockaddr) {
			mac, ip, ok := claim(b, from)
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
	}
	readers.Go(func() {
		read(arp, func(b []byte, _ unix.Sockaddr) (net.HardwareAddr, netip.Addr, bool) { return arpSender(b) })
	})
	if nd != nil {
		readers.Go(func() { read(nd, discoveryClaim) })
	}
	go func() {
		readers.Wait()
		close(out)
	}()
	return out, nil
}

// discoveryClaim reads what claimSocket gives.
func discoveryClaim(b []byte, from unix.Sockaddr) (net.HardwareAddr, netip.Addr, bool) {
	source, ok := from.(*unix.SockaddrInet6)
	if !ok {
		return nil, netip.Addr{}, false
	}
	m, ok := discovery(netip.AddrFrom16(source.Addr), b)
	if !ok {
		return nil, netip.Addr{}, false
	}
	return m.claims()
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
