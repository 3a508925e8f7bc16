// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

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

// arpAnswer is arpSender for somebody who probes: a host that probes for the
// same address wants it as well (RFC 5227 section 2.1.1).
func arpAnswer(b []byte) (net.HardwareAddr, netip.Addr, bool) {
	mac, ip, ok := arpSender(b)
	if mac != nil && !ok && binary.BigEndian.Uint16(b[6:]) == arpRequest {
		return mac, netip.AddrFrom4([4]byte(b[24:28])), true
	}
	return mac, ip, ok
}
