// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// attributeKind are the bits of an attribute's type that are not flags (NLA_TYPE_MASK).
const attributeKind = 0x3fff

// dumpBuffer holds any message of a list: the kernel fills 32 KiB at most.
const dumpBuffer = 64 << 10

// lister asks the kernel for lists over one socket. It reads them into one
// buffer, of which nothing is copied: 4,000 tenants are 10 MB of messages, and
// a library makes four times as much garbage of them. Safe for concurrent use.
type lister struct {
	mu       sync.Mutex
	protocol int // of netlink(7)
	fd       int // -1 where it is to be opened
	seq      uint32
	buffer   []byte
}

func newLister(protocol int) *lister {
	return &lister{protocol: protocol, fd: -1}
}

func (l *lister) open() (err error) {
	if l.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, l.protocol)
	if err != nil {
		return err
	}
	patience := nl.SocketTimeoutTv
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	l.fd, l.buffer = fd, make([]byte, dumpBuffer)
	return nil
}

// close releases the socket; a list that is asked for later opens another.
func (l *lister) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shut()
}

func (l *lister) shut() {
	if l.fd >= 0 {
		_ = unix.Close(l.fd) // nothing was written that could be lost
	}
	l.fd, l.buffer = -1, nil
}

// list hands over the body of each message of the answer to req, which lasts
// until each returns. The error of the first call that has one is returned. A
// list that changes interrupted is netlink.ErrDumpInterrupted.
func (l *lister) list(req *nl.NetlinkRequest, each func(body []byte) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.open(); err != nil {
		return err
	}
	l.seq++
	req.Flags, req.Seq = req.Flags|unix.NLM_F_DUMP, l.seq
	if err := unix.Sendto(l.fd, req.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := answer{seq: l.seq, each: each}
	for !answer.done {
		size, _, err := unix.Recvfrom(l.fd, l.buffer, unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && size > len(l.buffer) {
			err = fmt.Errorf("a message of %d bytes", size)
		}
		if err == nil {
			err = answer.take(l.buffer[:size])
		}
		if err != nil {
			l.shut() // the rest of the list may still come
			return err
		}
	}
	return answer.err
}

// dump reads a list of rtnetlink(7), again if changes interrupted it.
func dump[T any](kind int, parse func(body []byte) (T, error), about ...nl.NetlinkRequestData) ([]T, error) {
	l := newLister(unix.NETLINK_ROUTE)
	defer l.close()
	return consistent(func() (out []T, err error) {
		req := nl.NewNetlinkRequest(kind, 0)
		for _, a := range about {
			req.AddData(a)
		}
		err = l.list(req, func(body []byte) error {
			v, err := parse(body)
			out = append(out, v)
			return err
		})
		return out, err
	})
}

// answer is a list that is being read.
type answer struct {
	seq         uint32
	each        func(body []byte) error
	interrupted bool
	done        bool
	err         error // what it came to
}

// take takes in what one call has received: messages as in netlink(7). It returns
// an error if these are none.
func (a *answer) take(messages []byte) error {
	for len(messages) > 0 {
		if len(messages) < unix.SizeofNlMsghdr {
			return errMalformed
		}
		size := int(binary.NativeEndian.Uint32(messages))
		kind, flags := binary.NativeEndian.Uint16(messages[4:]), binary.NativeEndian.Uint16(messages[6:])
		seq := binary.NativeEndian.Uint32(messages[8:])
		if size < unix.SizeofNlMsghdr || size > len(messages) {
			return errMalformed
		}
		body := messages[unix.SizeofNlMsghdr:size]
		messages = messages[min(aligned(size), len(messages)):]
		if seq != a.seq || a.done {
			continue
		}
		a.interrupted = a.interrupted || flags&unix.NLM_F_DUMP_INTR != 0
		switch {
		case kind == unix.NLMSG_DONE || kind == unix.NLMSG_ERROR:
			a.end(body)
		case a.err == nil:
			a.err = a.each(body)
		}
	}
	return nil
}

// end takes in the last message, which may begin with an error number.
func (a *answer) end(body []byte) {
	a.done = true
	if len(body) >= 4 {
		if errno := int32(binary.NativeEndian.Uint32(body)); errno < 0 {
			a.err = unix.Errno(-errno)
		}
	}
	if a.err == nil && a.interrupted {
		a.err = netlink.ErrDumpInterrupted
	}
}

// errMalformed is of what does not follow netlink(7).
var errMalformed = errors.New("a malformed message of the kernel")

// attributes are those of a message, or within another, one after the other.
type attributes struct{ rest []byte }

// next returns the next attribute, its kind without flags, and false after the
// last.
func (a *attributes) next() (kind uint16, value []byte, more bool) {
	if len(a.rest) < unix.SizeofNlAttr {
		return 0, nil, false
	}
	size := int(binary.NativeEndian.Uint16(a.rest))
	if size < unix.SizeofNlAttr || size > len(a.rest) {
		return 0, nil, false
	}
	kind = binary.NativeEndian.Uint16(a.rest[2:]) & attributeKind
	value = a.rest[unix.SizeofNlAttr:size:size]
	a.rest = a.rest[min(aligned(size), len(a.rest)):]
	return kind, value, true
}

// malformed tells, after the last one, that what follows is none.
func (a *attributes) malformed() bool { return len(a.rest) > 0 }

// find returns the first attribute of a kind, nil if there is none.
func find(in []byte, kind uint16) []byte {
	for list := (attributes{in}); ; {
		k, value, more := list.next()
		if !more || k == kind {
			return value
		}
	}
}

func aligned(size int) int { return (size + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
