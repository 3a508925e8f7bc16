// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A kernel before 5.11 takes no length of the queue for broadcast, says nothing of
// it, and copies.
func TestKernelThatKnowsNoBroadcastQueue(t *testing.T) {
	message := func(attrs ...uint16) []byte {
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("macvlan"))
		data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
		for _, a := range attrs {
			data.AddRtAttr(int(a), nl.Uint32Attr(7))
		}
		return append(nl.NewIfInfomsg(unix.AF_UNSPEC).Serialize(), info.Serialize()...)
	}
	if used, told := queueUsed(message(unix.IFLA_MACVLAN_MODE, unix.IFLA_MACVLAN_BC_QUEUE_LEN, unix.IFLA_MACVLAN_BC_QUEUE_LEN_USED)); used != 7 || !told {
		t.Errorf("a kernel that tells: %d, %v", used, told)
	}
	old := message(unix.IFLA_MACVLAN_MODE)
	if used, told := queueUsed(old); used != 0 || told {
		t.Errorf("a kernel that does not: %d, %v", used, told)
	}
	if c := copies("enp1s0", false, nil); !c.Partial || !strings.Contains(c.String(), "5.11") {
		t.Errorf("said: %s", c)
	}
	for n := range old { // cut short anywhere
		_, _ = queueUsed(old[:n])
	}
}
