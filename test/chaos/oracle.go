// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/test/lab"
)

// firstPort is the port of the outside server for tenant number 0. Each tenant's
// pods send to their own port only, so that every packet, a TCP handshake and
// the quotation in an ICMP error too, says whose it is.
const firstPort = 20000

// Numbers that are no tenant's.
const (
	unknown = -1 // a packet that does not say whose it is
	own     = -2 // a packet of the gateway VM itself
)

// initialTTL is what the lab's kernels send with. A packet of a pod was
// forwarded twice on its way, and has less. One that has it is the VM's own: an
// ICMP error, say, or, while somebody has deleted the input guard, the reset by
// which its kernel answers what the server still sends to an egress IP.
const initialTTL = 64

// record is one packet of the external wire.
type record struct {
	at     int64   // nanoseconds
	src    int32   // index into sources
	tenant int32   // its number, or unknown or ownICMP
	what   [4]byte // protocol, TCP flags, the client's port
}

// recorder takes down each packet. see is called by one goroutine.
type recorder struct {
	tenants int
	sources []netip.Addr
	index   map[netip.Addr]int32
	records []record
}

func newRecorder(tenants int) *recorder {
	return &recorder{tenants: tenants, index: map[netip.Addr]int32{}}
}

func (r *recorder) see(p lab.Packet) {
	packet := parse(p.Header)
	if packet.discovery {
		return
	}
	i, ok := r.index[p.Src]
	if !ok {
		i = int32(len(r.sources))
		r.sources, r.index[p.Src] = append(r.sources, p.Src), i
	}
	rec := record{at: p.Time.UnixNano(), src: i, tenant: unknown}
	switch n := int(packet.port) - firstPort; {
	case packet.ttl == initialTTL, p.Src.IsLinkLocalUnicast(): // no router forwards the latter
		rec.tenant = own
	case packet.hasPort && n >= 0 && n < r.tenants:
		rec.tenant = int32(n)
	}
	rec.what = [4]byte{packet.protocol, packet.flags, byte(packet.client >> 8), byte(packet.client)}
	r.records = append(r.records, rec)
}

// ownAddresses are those of the gateway VM on the external NIC.
func ownAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(lab.GatewayExternal), netip.MustParseAddr(lab.GatewayExternal6)}
}

// parsed is what a packet says about itself.
type parsed struct {
	port      uint16 // the outside server's
	hasPort   bool
	discovery bool // neighbour or listener discovery of IPv6
	ttl       uint8
	protocol  uint8
	flags     uint8  // of TCP
	client    uint16 // the pod's port, as translated
}

// parse reads an Ethernet frame with an IP packet in it.
func parse(frame []byte) parsed {
	var p parsed
	if len(frame) < 14 {
		return p
	}
	ip := frame[14:]
	protocol, ttl, payload := header(ip)
	p.ttl, p.protocol = ttl, protocol
	switch {
	case (protocol == unix.IPPROTO_TCP || protocol == unix.IPPROTO_UDP) && len(payload) >= 4:
		p.port, p.hasPort = binary.BigEndian.Uint16(payload[2:]), true
		p.client = binary.BigEndian.Uint16(payload)
		if protocol == unix.IPPROTO_TCP && len(payload) >= 14 {
			p.flags = payload[13]
		}
	case protocol == unix.IPPROTO_ICMP && len(payload) >= 8 && slices.Contains([]byte{3, 4, 5, 11, 12}, payload[0]),
		protocol == unix.IPPROTO_ICMPV6 && len(payload) >= 8 && payload[0] < 128:
		// What is quoted came from the server, so its port is the source.
		if inner, _, quoted := header(payload[8:]); (inner == unix.IPPROTO_TCP || inner == unix.IPPROTO_UDP) && len(quoted) >= 4 {
			p.port, p.hasPort = binary.BigEndian.Uint16(quoted), true
		}
	case protocol == unix.IPPROTO_ICMPV6 && len(payload) > 0 && payload[0] >= 130 && payload[0] <= 143:
		p.discovery = true
	}
	return p
}

// header reads an IP header. Behind the first fragment there are no ports, and
// the payload is nil.
func header(ip []byte) (protocol, ttl uint8, payload []byte) {
	switch {
	case len(ip) >= 20 && ip[0]>>4 == 4:
		n := int(ip[0]&0xf) * 4
		if binary.BigEndian.Uint16(ip[6:])&0x1fff == 0 && len(ip) >= n {
			payload = ip[n:]
		}
		return ip[9], ip[8], payload
	case len(ip) >= 40 && ip[0]>>4 == 6:
		protocol, ttl, payload = ip[6], ip[7], ip[40:]
		if protocol == unix.IPPROTO_HOPOPTS && len(payload) >= 8 { // listener discovery has a router alert
			return payload[0], ttl, payload[min(len(payload), 8+8*int(payload[1])):]
		}
		return protocol, ttl, payload
	}
	return 0, 0, nil
}

// verdict is what all packets come to.
type verdict struct {
	Checked, Wrong int
	Own            int           // packets of the VM itself
	Right          map[voice]int // the right ones
	Reasons        map[string]int
	Examples       []string
}

// voice is a tenant in one family.
type voice struct {
	tenant string
	is6    bool
}

const (
	keptExamples  = 20
	neverATenants = "a source that was never any tenant's"
)

// judge checks every packet against the history.
func judge(r *recorder, h history, name func(int) string) verdict {
	v := verdict{Right: map[voice]int{}, Reasons: map[string]int{}}
	// Stable: packets with one time stay in the order of the ring.
	slices.SortStableFunc(r.records, func(a, b record) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	})
	latest := map[int32]int{} // by source: the latest grant that a packet has used
	for _, rec := range r.records {
		v.Checked++
		src, at := r.sources[rec.src], time.Unix(0, rec.at)
		if rec.tenant == own {
			v.Own++
			if src.IsLinkLocalUnicast() || slices.Contains(ownAddresses(), src) {
				continue
			}
		}
		why := ""
		switch {
		case len(h.byAddr[src]) == 0:
			why = neverATenants
		case rec.tenant < 0 && !h.anyone(src, at):
			why = "a packet of no known tenant, with an address that is no one's then"
		case rec.tenant >= 0:
			i := h.entitled(name(int(rec.tenant)), src, at)
			if i < 0 {
				why = "an address that is not the tenant's then"
			} else if before, ok := latest[rec.src]; ok && i < before {
				why = "an address that its next holder uses already"
			} else {
				latest[rec.src] = i
				v.Right[voice{name(int(rec.tenant)), src.Is6()}]++
			}
		}
		if why == "" {
			continue
		}
		v.Wrong++
		v.Reasons[why]++
		if len(v.Examples) < keptExamples {
			v.Examples = append(v.Examples, fmt.Sprintf("%s: tenant %s, source %s, at %s; protocol %d, TCP flags %#x, client's port %d; grants %s",
				why, tenantText(int(rec.tenant), name), src, at.Format("15:04:05.000000"),
				rec.what[0], rec.what[1], int(rec.what[2])<<8|int(rec.what[3]), h.text(src)))
		}
	}
	return v
}

func tenantText(n int, name func(int) string) string {
	switch n {
	case own:
		return "none, but the VM itself"
	case unknown:
		return "unknown"
	}
	return name(n)
}

// text shows the last grants of an address.
func (h history) text(addr netip.Addr) string {
	list := h.byAddr[addr]
	s := ""
	for _, g := range list[max(0, len(list)-6):] {
		until := "now"
		if !g.until.IsZero() {
			until = g.until.Format("15:04:05.000000")
		}
		s += fmt.Sprintf("[%s %s-%s]", g.tenant, g.from.Format("15:04:05.000000"), until)
	}
	return s
}
