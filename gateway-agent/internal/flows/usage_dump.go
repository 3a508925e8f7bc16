// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The dump of the table is read without making a value of each entry: that
// would cost ten times the time and some hundred MiB on a full table.

const (
	dumpBuffer  = 64 << 10 // the kernel sends at most 32 KiB at once
	dumpTimeout = 5 * time.Second

	// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
	messageGet     = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	attrReply      = 2
	attrStatus     = 3
	attrMark       = 8
	attrTupleIP    = 1
	attrTupleProto = 2
	attrProtoNum   = 1
	attrSourcePort = 2
	attrTypeMask   = 0x3fff

	nfgenmsgLen     = 4
	statusSourceNAT = 1 << 4 // IPS_SRC_NAT
)

var errShort = errors.New("a message of the kernel is cut short")

// entry is what Usage needs of a connection.
type entry struct {
	status, mark uint32
	// target is protocol, port, destination, egress IP; IPv4 addresses fill 4 of
	// their 16 bytes.
	target [targetSize]byte
	four   bool
}

const targetSize = 3 + 16 + 16

func (e *entry) decode() Target {
	t := Target{Protocol: e.target[0]}
	dst, egress := netip.AddrFrom16([16]byte(e.target[3:19])), netip.AddrFrom16([16]byte(e.target[19:35]))
	if e.four {
		dst, egress = netip.AddrFrom4([4]byte(e.target[3:7])), netip.AddrFrom4([4]byte(e.target[19:23]))
	}
	t.Destination, t.Egress = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(e.target[1:3])), egress
	return t
}

// dump hands all entries to c. Its socket is its own, so that it neither mixes
// with deletions nor waits for them, and what a dump that was given up leaves
// unread goes with the socket.
func dump(ctx context.Context, c *counter) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(dumpTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	request := make([]byte, 20) // the header, and nfgenmsg: any family
	binary.NativeEndian.PutUint32(request, 20)
	binary.NativeEndian.PutUint16(request[4:], messageGet)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, dumpBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := read(buf[:n], c); done || err != nil {
			return err
		}
	}
}

// read hands the entries of one datagram to c; done says it was the last one.
func read(b []byte, c *counter) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, errShort
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		body := b[unix.NLMSG_HDRLEN:size]
		b = b[min((size+3)&^3, len(b)):]
		switch kind {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return false, errShort
			}
			return true, fmt.Errorf("dump: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
		}
		if len(body) < nfgenmsgLen {
			return false, errShort
		}
		c.add(parseEntry(body[nfgenmsgLen:]))
	}
	return false, nil
}

func parseEntry(b []byte) entry {
	var e entry
	attributes(b, func(kind uint16, v []byte) {
		switch {
		case kind == attrReply:
			e.tuple(v)
		case kind == attrStatus && len(v) == 4:
			e.status = binary.BigEndian.Uint32(v)
		case kind == attrMark && len(v) == 4:
			e.mark = binary.BigEndian.Uint32(v)
		}
	})
	return e
}

// tuple reads the direction of the replies: from the destination to the egress
// IP, from the destination's port.
func (e *entry) tuple(b []byte) {
	attributes(b, func(kind uint16, v []byte) {
		switch kind {
		case attrTupleIP:
			attributes(v, func(kind uint16, a []byte) {
				// 1 and 2 are the IPv4 addresses, 3 and 4 the IPv6 ones.
				at := 3 + 16*int((kind-1)%2)
				if kind >= 1 && kind <= 4 && (len(a) == 4 || len(a) == 16) {
					copy(e.target[at:], a)
					e.four = len(a) == 4
				}
			})
		case attrTupleProto:
			attributes(v, func(kind uint16, p []byte) {
				switch {
				case kind == attrProtoNum && len(p) == 1:
					e.target[0] = p[0]
				case kind == attrSourcePort && len(p) == 2:
					copy(e.target[1:], p)
				}
			})
		}
	})
}

// attributes calls f for each netlink attribute of b.
func attributes(b []byte, f func(kind uint16, v []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[4:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}
