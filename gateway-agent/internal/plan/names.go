// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"
	"strings"
)

// Everything that the gateway owns in the kernel is recognised by these names.
const (
	// LinkPrefix and three hex digits name a tenant's link.
	LinkPrefix = "eg"
	// ChainPrefix starts the names of all our iptables chains.
	ChainPrefix = "EGW-"
	// GuardTable is the nftables table of the guards, family inet.
	GuardTable = "egw-guard"
	// Protocol marks routes, and addresses where the kernel knows protocols of
	// addresses (Linux 5.18). 97 is free in iproute2's rt_protos.
	Protocol = 97
	// MinMarkBits is what a MarkMask has to offer: three hex digits.
	MinMarkBits = 12

	labelSuffix = ":egw"
	maxLabelLen = 15 // IFNAMSIZ without the closing zero
)

// LinkName returns the name of the link of tenant number n.
func LinkName(n int) string { return fmt.Sprintf("%s%03x", LinkPrefix, n) }

// LinkNumber is the inverse of LinkName; ok is false for any other name.
func LinkNumber(name string) (n int, ok bool) {
	digits, found := strings.CutPrefix(name, LinkPrefix)
	if !found || len(digits) != 3 || strings.ToLower(digits) != digits {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 16, 12)
	return int(v), err == nil && v > 0
}

// Mark returns the mark of tenant number n within mask.
func Mark(mask uint32, n int) uint32 { return uint32(n) << bits.TrailingZeros32(mask) }

// MAC returns the MAC address of a gateway IP: the same on every VM and after
// every re-creation, so that no neighbour cache ever holds a wrong one. IPv4
// addresses and hashes of IPv6 addresses have different first bytes.
func MAC(ip netip.Addr) string {
	b := [6]byte{0x02, 0x00}
	if ip.Is4() {
		a := ip.As4()
		copy(b[2:], a[:])
	} else {
		a := ip.As16()
		h := sha256.Sum256(a[:])
		b[0] = 0x06
		copy(b[1:], h[:])
	}
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

// AddrLabel returns the label that marks an IPv4 address on nic as ours. Where
// "<nic>:egw" would be too long, it is the suffix alone; the kernel does not
// ask for the NIC's name, only iproute2 does.
func AddrLabel(nic string) string {
	if len(nic)+len(labelSuffix) <= maxLabelLen {
		return nic + labelSuffix
	}
	return labelSuffix[1:]
}

// checkMask says what is wrong with a mark mask.
func checkMask(mask uint32) error {
	n := bits.OnesCount32(mask)
	if n < MinMarkBits || bits.LeadingZeros32(mask)+n+bits.TrailingZeros32(mask) != 32 {
		return fmt.Errorf("mark mask %#x: want at least %d bits in one row, for example 0xfff00000", mask, MinMarkBits)
	}
	return nil
}
