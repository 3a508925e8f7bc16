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
// would cost three times the time or more, and 150 MiB for 100,000 entries.

const (
	dumpBuffer  = 64 << 10 // the kernel sends at most 32 KiB at once
	dumpTimeout = 5 * time.Second

	// Messages and attributes of linux/netfilter/nfnetlink_conntrack.h.
	messageGet     = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	attrOriginal   = 1
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

// dumper asks for all entries. It is for one goroutine at a time.
type dumper struct {
	fd  int
	seq uint32
}

// openDumper works on the network namespace of its caller.
func openDumper() (*dumper, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(int64(dumpTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &dumper{fd: fd}, nil
}

func (d *dumper) close() error { return unix.Close(d.fd) }

// dump hands over the message of each entry, which holds during the call only.
// After an error the dumper is of no use any more.
func (d *dumper) dump(ctx context.Context, each func(message []byte)) error {
	d.seq++
	request := make([]byte, 20) // the header, and nfgenmsg: any family
	binary.NativeEndian.PutUint32(request, 20)
	binary.NativeEndian.PutUint16(request[4:], messageGet)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(request[8:], d.seq)
	if err := unix.Sendto(d.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, dumpBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, _, err := unix.Recvfrom(d.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if done, err := read(buf[:n], each); done || err != nil {
			return err
		}
	}
}

// read hands over the entries of one datagram; done says it was the last one.
func read(b []byte, each func(message []byte)) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, errShort
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		message := b[:size]
		body := message[unix.NLMSG_HDRLEN:]
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
		each(message)
	}
	return false, nil
}

// attributesOf are those of an entry's message.
func attributesOf(message []byte) []byte { return message[unix.NLMSG_HDRLEN+nfgenmsgLen:] }

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
