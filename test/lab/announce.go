// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab/namespace"
)

// announce sends a gratuitous ARP request, as a machine does that gets an
// address: neighbours that knew another owner of it learn the new one.
func (l *Lab) announce(part Part, nic string, addr netip.Addr) error {
	h, err := l.netlink(part)
	if err != nil {
		return err
	}
	link, err := h.LinkByName(nic)
	if err != nil {
		return fmt.Errorf("announce %s: %w", addr, err)
	}
	err = namespace.Do(l.Namespace(part), func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ARP), Ifindex: link.Attrs().Index, Halen: 6,
			Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		return unix.Sendto(fd, gratuitousARP(link.Attrs().HardwareAddr, addr), 0, to)
	})
	if err != nil {
		return fmt.Errorf("announce %s: %w", addr, err)
	}
	return nil
}

func gratuitousARP(mac net.HardwareAddr, addr netip.Addr) []byte {
	arp := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, request
	arp = append(append(arp, mac...), addr.AsSlice()...)
	return append(append(arp, make([]byte, 6)...), addr.AsSlice()...)
}
