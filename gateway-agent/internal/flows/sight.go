// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// sight is what decides about an entry. source and destination are those of its
// first packet, egress is where replies go: the source that others see.
type sight struct {
	source, destination, egress netip.Addr
	status, mark                uint32
}

func parseSight(b []byte) (s sight) {
	attributes(b, func(kind uint16, v []byte) {
		switch {
		case kind == attrOriginal:
			s.source, s.destination = addresses(v)
		case kind == attrReply:
			_, s.egress = addresses(v)
		case kind == attrStatus && len(v) == 4:
			s.status = binary.BigEndian.Uint32(v)
		case kind == attrMark && len(v) == 4:
			s.mark = binary.BigEndian.Uint32(v)
		}
	})
	return s
}

// addresses returns those of a tuple.
func addresses(tuple []byte) (source, destination netip.Addr) {
	attributes(tuple, func(kind uint16, v []byte) {
		if kind != attrTupleIP {
			return
		}
		attributes(v, func(kind uint16, a []byte) {
			ip, ok := netip.AddrFromSlice(a)
			switch {
			case !ok:
			case kind == 1 || kind == 3: // IPv4 and IPv6
				source = ip
			case kind == 2 || kind == 4:
				destination = ip
			}
		})
	})
	return source, destination
}

// look hands over each entry of the namespace in which Open was called, with its
// message, which holds during the call only. f.mu is held.
func (f *Flows) look(ctx context.Context, each func(sight, []byte)) error {
	if f.dumper == nil {
		var err error
		if f.dumper, err = openDumper(); err != nil {
			return err
		}
	}
	err := f.dumper.dump(ctx, func(message []byte) { each(parseSight(attributesOf(message)), message) })
	if err != nil {
		// It may still hold answers that nobody waits for.
		err = errors.Join(err, f.dumper.close())
		f.dumper = nil
	}
	return err
}

// flowOf makes a whole value of a message, for deletion.
func flowOf(message []byte) (conntrack.Flow, error) {
	var e conntrack.Event
	err := e.Unmarshal(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(binary.NativeEndian.Uint16(message[4:]))},
		Data:   message[unix.NLMSG_HDRLEN:],
	})
	if err != nil || e.Flow == nil {
		return conntrack.Flow{}, errors.Join(err, errShort)
	}
	return key(*e.Flow), nil
}
