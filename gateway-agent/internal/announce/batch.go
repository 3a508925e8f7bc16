// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many frames one call hands to the kernel.
const batchSize = 32

// sender hands frames to the kernel, many with one call. It is for one goroutine.
type sender struct {
	fd int
	// The kernel reads these while a call lasts.
	headers   [batchSize]mmsghdr
	addresses [batchSize]unix.RawSockaddrLinklayer
	vectors   [batchSize]unix.Iovec
	entries   [batchSize]entry // whose frames they are
}

// mmsghdr is struct mmsghdr (sendmmsg(2)).
type mmsghdr struct {
	header unix.Msghdr
	sent   uint32
}

func newSender(fd int) *sender { return &sender{fd: fd} }

// send sends the entries of batch, batchSize at most, from their links, and
// hands over those that could not be sent.
func (s *sender) send(batch []entry, failed func(Target, error)) {
	n := 0
	var last string // links come in rows
	var index int
	var mac net.HardwareAddr
	for _, e := range batch {
		if e.target.Dev != last || mac == nil {
			var err error
			if index, mac, err = linkOf(s.fd, e.target.Dev); err != nil {
				failed(e.target, fmt.Errorf("link %s: %w", e.target.Dev, err))
				mac = nil
				continue
			}
			last = e.target.Dev
		}
		s.put(n, e, index, frameOf(e.form, mac, e.target.IP))
		n++
	}
	for from := 0; from < n; {
		sent, err := s.call(from, n)
		if from += sent; err != nil && from < n {
			failed(s.entries[from].target, err)
			from++
		}
	}
}

func (s *sender) put(i int, e entry, index int, frame []byte) {
	s.entries[i] = e
	to := &s.addresses[i]
	*to = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(index), Halen: 6}
	copy(to.Addr[:], frame[:6])
	s.vectors[i].Base = &frame[0]
	s.vectors[i].SetLen(len(frame))
	h := &s.headers[i].header
	h.Name, h.Namelen = (*byte)(unsafe.Pointer(to)), unix.SizeofSockaddrLinklayer
	h.Iov = &s.vectors[i]
	h.SetIovlen(1)
}

// call returns how many frames went, and what is wrong with the next one.
func (s *sender) call(from, to int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.headers[from])), uintptr(to-from), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// frameOf makes an announcement. That by ARP has two forms: a reply, which OVN
// learns from in any case, and a request, which Linux and switches' ARP
// inspection like better. OVN takes it only for an address that it knows.
func frameOf(f form, mac net.HardwareAddr, ip netip.Addr) []byte {
	switch f {
	case formAdvert:
		return neighbourAdvertisement(mac, ip)
	case formReply:
		return gratuitousARP(mac, ip, arpReply)
	default:
		return gratuitousARP(mac, ip, arpRequest)
	}
}
