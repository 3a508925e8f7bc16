// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// requestsAtOnce are handed to the kernel by one call, which takes 20 ms at the
// most: between two of them the guards are looked after.
const requestsAtOnce = 64

// requestable tells the steps that are one request to the kernel each, and little
// else.
func requestable(s plan.Step) bool {
	switch s.(type) {
	case plan.MakeLink, plan.RaiseLink, plan.AddAddr:
		return true
	}
	return false
}

// requestRow returns how many of the steps, of which the first is requestable, go
// to the kernel at once: none of them may depend on whether another succeeds.
func requestRow(steps []plan.Step) int {
	owners := make(map[string]bool, requestsAtOnce)
	for n, s := range steps {
		if n == requestsAtOnce || !requestable(s) || owners[s.Tenant()] {
			return n
		}
		owners[s.Tenant()] = true
	}
	return len(steps)
}

// requests carries out such a row. What the kernel does not take is tried by
// itself, which finds out why, and whether that is a failure.
func (a *applier) requests(row []plan.Step) {
	taken := a.together(row)
	var made []plan.Step
	var names []*nl.NetlinkRequest
	for i, s := range row {
		if !taken[i] {
			a.fail(s, a.other(s))
		} else if l, is := s.(plan.MakeLink); is {
			if err := a.k.setIPv6(l.Link); err != nil {
				a.fail(s, err)
				continue
			}
			made, names = append(made, s), append(names, a.k.nameLink(l.Link))
		}
	}
	for i, named := range a.k.execute(names) {
		if !named {
			a.fail(made[i], a.other(made[i]))
		}
	}
}

// together returns which of the steps were carried out, but for what follows a
// request.
func (a *applier) together(row []plan.Step) []bool {
	taken := make([]bool, len(row))
	if len(row) == 1 || a.k.unprotected || a.ctx.Err() != nil {
		return taken
	}
	indices := make(map[string]int) // a NIC's is asked for once
	var requests []*nl.NetlinkRequest
	var of []int
	for i, s := range row {
		if l, made := s.(plan.MakeLink); made {
			a.forgetCounts(l.Link)
		}
		if req, err := a.k.requestFor(s, indices); err == nil {
			requests, of = append(requests, req), append(of, i)
		}
	}
	for i, ok := range a.k.execute(requests) {
		taken[of[i]] = ok
	}
	return taken
}

// requestFor returns the request of a step; indices are those of links that were
// asked for before.
func (k *Kernel) requestFor(s plan.Step, indices map[string]int) (*nl.NetlinkRequest, error) {
	index := func(name string) (i int, err error) {
		if i, known := indices[name]; known {
			return i, nil
		}
		if i, err = k.linkIndex(name); err == nil {
			indices[name] = i
		}
		return i, err
	}
	switch s := s.(type) {
	case plan.MakeLink:
		parent, err := index(s.Link.Parent)
		if err != nil {
			return nil, err
		}
		return k.newLink(s.Link, parent)
	case plan.AddAddr:
		dev, err := index(s.Addr.Dev)
		if err != nil {
			return nil, err
		}
		return k.newAddr(s.Addr, dev), nil
	case plan.RaiseLink:
		return k.setLink(s.Name, unix.IFF_UP), nil
	}
	return nil, unix.EOPNOTSUPP
}

// execute hands requests to the kernel by one call, which carries them out in
// their order, and tells which of them it has confirmed. One by one, a quarter of
// the time would be spent on the way.
func (k *Kernel) execute(requests []*nl.NetlinkRequest) []bool {
	done := make([]bool, len(requests))
	shared := k.sockets[unix.NETLINK_ROUTE]
	shared.Socket.Lock()
	defer shared.Socket.Unlock()
	fd := shared.Socket.GetFd()
	var all []byte
	at := make(map[uint32]int, len(requests))
	for i, req := range requests {
		req.Seq = atomic.AddUint32(&shared.Seq, 1)
		at[req.Seq] = i
		all = append(all, req.Serialize()...)
	}
	if len(all) == 0 || unix.Sendto(fd, all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return done
	}
	// It has answered all before the call returns.
	buffer := make([]byte, 8<<10)
	for answers := 0; answers < len(requests); {
		n, from, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done // some answers are lost
		}
		if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != nl.PidKernel {
			continue
		}
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil {
			continue
		}
		for _, m := range messages {
			if i, ours := at[m.Header.Seq]; ours && m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4 {
				done[i] = binary.NativeEndian.Uint32(m.Data) == 0
				answers++
			}
		}
	}
	return done
}
