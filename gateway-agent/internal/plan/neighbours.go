// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"egress-gateway.io/shared/tenant"
)

const (
	// NeighbourTable is the nftables table, family netdev, that hands neighbour
	// requests to the link that they are for.
	NeighbourTable = "egw-neigh"
	// RequestMark is the packet mark that it puts on the requests that it hands
	// over. They came by broadcast or multicast, which can not be seen any more.
	RequestMark = 0x65677701

	neighbourMap4 = "link4"
	neighbourMap6 = "link6"
)

// Neighbours is that table. A broadcast that reaches the internal NIC would
// be copied to all links, one after the other; links refuse broadcast instead
// (BroadcastQueue), and the table sends each request for a gateway IP to the
// MAC of the one link that has to answer. The zero value is no table.
type Neighbours struct {
	// Shape identifies everything of the table but its elements.
	Shape string
	// MACs are the tenants' links, by gateway IP; Of the tenants, which an
	// observed state does not know.
	MACs map[netip.Addr]string
	Of   map[netip.Addr]string
	// Device is the internal NIC; empty in an observed state.
	Device string
}

// BroadcastQueue is how many broadcast frames may wait for being copied to a
// tenant's link: none, so that none is. A frame that reached the internal NIC
// by broadcast or multicast is the VM's own business.
const BroadcastQueue = 0

// newNeighbours returns the table for the internal NIC, without elements.
func newNeighbours(device string) Neighbours {
	n := Neighbours{Device: device, MACs: make(map[netip.Addr]string), Of: make(map[netip.Addr]string)}
	n.Shape = n.shape()
	return n
}

func (n Neighbours) shape() string {
	sum := sha256.Sum256([]byte(n.Device + strings.Join(n.declarations(), "\n") + strings.Join(n.rules(), "\n")))
	return hex.EncodeToString(sum[:6])
}

// declarations are the maps. nft 1.0.6 has no name for the target of a
// neighbour solicitation: 16 bytes, 8 after the start of the ICMPv6 header.
func (n Neighbours) declarations() []string {
	return []string{
		"map netdev " + NeighbourTable + " " + neighbourMap4 + " { type ipv4_addr : ether_addr; }",
		"map netdev " + NeighbourTable + " " + neighbourMap6 + " { typeof @th,64,128 : ether daddr; }",
		fmt.Sprintf("chain netdev %s in { type filter hook ingress device %q priority -500; policy accept; }", NeighbourTable, n.Device),
	}
}

// rules are the rules of the chain: all that they cost other packets is a look
// at the protocol. The kernel drops what is sent to a link's MAC to nobody, so
// a request that has been handed over needs no further rule.
func (n Neighbours) rules() []string {
	handOver := fmt.Sprintf(" meta mark set %#x counter accept", RequestMark)
	return []string{
		"arp operation request ether daddr ff:ff:ff:ff:ff:ff ether daddr set arp daddr ip map @" + neighbourMap4 + handOver,
		"icmpv6 type nd-neighbor-solicit ether daddr & ff:ff:00:00:00:00 == 33:33:00:00:00:00 ether daddr set @th,64,128 map @" + neighbourMap6 + handOver,
	}
}

// SetNeighbours makes the table anew, in one transaction.
type SetNeighbours struct{ Neighbours Neighbours }

// DelNeighbours removes the table.
type DelNeighbours struct{}

// AddNeighbour hands the requests for IP to the link with MAC; Was is the MAC
// that they went to before, if any.
type AddNeighbour struct {
	Of       string
	IP       netip.Addr
	MAC, Was string
}

// DelNeighbour ends that.
type DelNeighbour struct {
	Of  string
	IP  netip.Addr
	MAC string
}

// neighbourLines returns the lines of nft -f input that carry out a step of the
// neighbour table, or nil for any other step.
func neighbourLines(s Step) []string {
	switch s := s.(type) {
	case SetNeighbours:
		const table = "table netdev " + NeighbourTable
		out := []string{"add " + table, "delete " + table, "add " + table}
		for _, d := range s.Neighbours.declarations() {
			out = append(out, "add "+d)
		}
		for _, r := range s.Neighbours.rules() {
			out = append(out, fmt.Sprintf("add rule netdev %s in %s comment %q", NeighbourTable, r, s.Neighbours.Shape))
		}
		for _, f := range tenant.Families() {
			var elements []string
			for _, ip := range sortedFunc(s.Neighbours.MACs, netip.Addr.Compare) {
				if tenant.FamilyOf(ip) == f {
					elements = append(elements, neighbourElement(ip, s.Neighbours.MACs[ip]))
				}
			}
			if len(elements) > 0 {
				out = append(out, "add element netdev "+NeighbourTable+" "+NeighbourMap(f)+" { "+strings.Join(elements, ", ")+" }")
			}
		}
		return out
	case DelNeighbours:
		return []string{"delete table netdev " + NeighbourTable}
	case AddNeighbour:
		var out []string
		if s.Was != "" {
			out = neighbourLines(DelNeighbour{s.Of, s.IP, s.Was})
		}
		return append(out, neighbourLine("add", s.IP, s.MAC))
	case DelNeighbour:
		return []string{neighbourLine("delete", s.IP, s.MAC)}
	}
	return nil
}

// NeighbourMap names the map of a family: from gateway IPs to MACs.
func NeighbourMap(f tenant.Family) string {
	if f == tenant.IPv6 {
		return neighbourMap6
	}
	return neighbourMap4
}

func neighbourLine(verb string, ip netip.Addr, mac string) string {
	return fmt.Sprintf("%s element netdev %s %s { %s }", verb, NeighbourTable, NeighbourMap(tenant.FamilyOf(ip)), neighbourElement(ip, mac))
}

// neighbourElement writes an element as nft takes it: a part of a packet that
// has no name has no type either, and is a number.
func neighbourElement(ip netip.Addr, mac string) string {
	if ip.Is6() {
		return "0x" + hex.EncodeToString(ip.AsSlice()) + " : " + mac
	}
	return ip.String() + " : " + mac
}

// ParseNeighbour reads the address of an element as nft prints it.
func ParseNeighbour(s string) (netip.Addr, error) {
	digits, ok := strings.CutPrefix(s, "0x")
	if !ok {
		return netip.ParseAddr(s)
	}
	var a [16]byte
	if len(digits) > 32 {
		return netip.Addr{}, fmt.Errorf("%q is longer than an address", s)
	}
	if _, err := hex.Decode(a[:], []byte(strings.Repeat("0", 32-len(digits))+digits)); err != nil {
		return netip.Addr{}, err
	}
	return netip.AddrFrom16(a), nil
}

// neighboursCome prepares the table before the links that it is for.
func (d *differ) neighboursCome() {
	want, have := d.want.Neighbours, d.have.Neighbours
	if want.Shape == "" {
		return
	}
	if want.Shape != have.Shape {
		d.add(SetNeighbours{want})
		d.have.Neighbours = want
		return
	}
	for _, ip := range sortedFunc(want.MACs, netip.Addr.Compare) {
		if mac := want.MACs[ip]; have.MACs[ip] != mac {
			d.add(AddNeighbour{want.Of[ip], ip, mac, have.MACs[ip]})
		}
	}
}

// neighboursGo removes what is left of it after the links.
func (d *differ) neighboursGo() {
	want, have := d.want.Neighbours, d.have.Neighbours
	if want.Shape == "" {
		if have.Shape != "" {
			d.add(DelNeighbours{})
		}
		return
	}
	for _, ip := range sortedFunc(have.MACs, netip.Addr.Compare) {
		if _, wanted := want.MACs[ip]; !wanted {
			d.add(DelNeighbour{"", ip, have.MACs[ip]})
		}
	}
}

func (s SetNeighbours) String() string {
	return fmt.Sprintf("nft add table netdev %s  # on %s, with %d gateway IPs", NeighbourTable, s.Neighbours.Device, len(s.Neighbours.MACs))
}
func (s DelNeighbours) String() string { return "nft " + neighbourLines(s)[0] }
func (s AddNeighbour) String() string  { return "nft '" + strings.Join(neighbourLines(s), "; ") + "'" }
func (s DelNeighbour) String() string  { return "nft '" + neighbourLines(s)[0] + "'" }

// Tenant implements Step.
func (SetNeighbours) Tenant() string { return "" }

// Tenant implements Step.
func (DelNeighbours) Tenant() string { return "" }

// Tenant implements Step.
func (s AddNeighbour) Tenant() string { return s.Of }

// Tenant implements Step.
func (s DelNeighbour) Tenant() string { return s.Of }

// Executor implements Step.
func (SetNeighbours) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelNeighbours) Executor() Executor { return Kernel }

// Executor implements Step.
func (AddNeighbour) Executor() Executor { return Kernel }

// Executor implements Step.
func (DelNeighbour) Executor() Executor { return Kernel }
