// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// CheckBroadcast is the name of the check that fails while broadcast is copied to
// the tenants' links.
const CheckBroadcast = "broadcast"

// broadcastCopied checks that the kernel copies no broadcast to the tenants'
// links. They are made to take none, but what counts is the longest queue that any
// macvlan of the NIC asks for (update_port_bc_queue_len, drivers/net/macvlan.c),
// in whatever network namespace that one is. Each of them tells the length in use:
// one is asked, however many tenants there are.
func (k *Kernel) broadcastCopied(ctx context.Context) Check {
	failed := func(err error) Check {
		return Check{Name: CheckBroadcast, Err: err, Remedy: "see whether ip -d link works on this machine", Partial: true}
	}
	if !k.mirror.valid {
		if err := k.lookAtLinks(ctx); err != nil {
			return failed(err)
		}
	}
	for _, l := range k.mirror.links {
		used, told, err := k.askQueue(l.Name)
		switch {
		case errors.Is(err, unix.ENODEV): // gone since
			continue
		case err != nil:
			return failed(err)
		case told && used == plan.BroadcastQueue:
			return Check{}
		}
		askers, settled, err := k.queueAskers(k.host.Internal)
		switch {
		case err != nil:
			return failed(err)
		case told && !settled: // the next pass mends it
			return Check{}
		}
		return copies(k.host.Internal, told, askers)
	}
	return Check{}
}

// copies says who has the kernel copy broadcast. told is whether it tells of
// queues at all, askers are the links that ask for one as far as they are seen from here.
func copies(nic string, told bool, askers []string) Check {
	c := Check{Name: CheckBroadcast, Partial: true}
	switch {
	case !told:
		c.Err = fmt.Errorf("this kernel copies each broadcast frame that reaches %s to the link of every tenant", nic)
		c.Remedy = "use Linux 5.11 or later; until then all works, but with many tenants a few hundred broadcasts a second take a processor"
	case len(askers) == 0:
		c.Err = fmt.Errorf("each broadcast frame that reaches %s is copied to the link of every tenant, as a macvlan of %s in another network namespace, such as a container's, asks for broadcast", nic, nic)
		c.Remedy = "put that one (docker network ls --filter driver=macvlan) on another NIC"
	default:
		c.Err = fmt.Errorf("each broadcast frame that reaches %s is copied to the link of every tenant, as these macvlans ask for broadcast: %s", nic, strings.Join(askers, ", "))
		c.Remedy = fmt.Sprintf("put them on another NIC, or: ip link set %s type macvlan bcqueuelen 0", askers[0])
	}
	return c
}

// queueAskers returns the links of others that have nic take copies of broadcast.
// It is settled once no link of ours does.
func (k *Kernel) queueAskers(nic string) (askers []string, settled bool, err error) {
	parent, err := k.linkIndex(nic)
	if err != nil {
		return nil, false, err
	}
	links, err := dumpLinks(false)
	if err != nil {
		return nil, false, err
	}
	settled = true
	for _, l := range links {
		if _, ours := plan.LinkNumber(l.name); l.parent != parent || !l.broadcast || l.kind != "macvlan" && l.kind != "macvtap" {
			continue
		} else if ours {
			settled = false
		} else if len(askers) < 8 {
			askers = append(askers, l.name)
		}
	}
	return askers, settled, nil
}

// askQueue returns how long the queue for broadcast is at the NIC of a macvlan.
// Kernels before 5.11 do not tell.
func (k *Kernel) askQueue(name string) (used uint32, told bool, err error) {
	req := k.request(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(rtextFilterSkipStats)))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	messages, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return 0, false, fmt.Errorf("look at link %s: %w", name, err)
	}
	for _, m := range messages {
		if used, told := queueUsed(m); told {
			return used, true, nil
		}
	}
	return 0, false, nil
}

// queueUsed reads that from a message about a link.
func queueUsed(m []byte) (used uint32, told bool) {
	if len(m) < unix.SizeofIfInfomsg {
		return 0, false
	}
	data := find(find(m[unix.SizeofIfInfomsg:], unix.IFLA_LINKINFO), unix.IFLA_INFO_DATA)
	value := find(data, unix.IFLA_MACVLAN_BC_QUEUE_LEN_USED)
	if len(value) < 4 {
		return 0, false
	}
	return binary.NativeEndian.Uint32(value), true
}
