// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
)

// DeleteEgressFlows ends the connections that leave with an egress IP, except
// those that carry KeepMark (0: none is kept).
type DeleteEgressFlows struct {
	Of             string
	Egress         netip.Addr
	KeepMark, Mask uint32
}

// DeleteMarkFlows ends the connections that carry a tenant's mark.
type DeleteMarkFlows struct {
	Of         string
	Mark, Mask uint32
}

// AnnounceAddr tells the neighbours on Dev where IP is now.
type AnnounceAddr struct {
	Of  string
	Dev string
	IP  netip.Addr
}

func (s DeleteEgressFlows) String() string {
	if s.KeepMark != 0 {
		return fmt.Sprintf("conntrack -D --reply-dst %s  # but those with mark %#x/%#x", s.Egress, s.KeepMark, s.Mask)
	}
	return fmt.Sprintf("conntrack -D --reply-dst %s", s.Egress)
}

func (s DeleteMarkFlows) String() string {
	return fmt.Sprintf("conntrack -D -m %#x/%#x", s.Mark, s.Mask)
}

func (s AnnounceAddr) String() string {
	if s.IP.Is6() {
		return fmt.Sprintf("ndsend %s %s", s.IP, s.Dev)
	}
	return fmt.Sprintf("arping -U -I %s %s", s.Dev, s.IP)
}

// Tenant implements Step.
func (s DeleteEgressFlows) Tenant() string { return s.Of }

// Tenant implements Step.
func (s DeleteMarkFlows) Tenant() string { return s.Of }

// Tenant implements Step.
func (s AnnounceAddr) Tenant() string { return s.Of }

// Executor implements Step.
func (s DeleteEgressFlows) Executor() Executor { return Flows }

// Executor implements Step.
func (s DeleteMarkFlows) Executor() Executor { return Flows }

// Executor implements Step.
func (s AnnounceAddr) Executor() Executor { return Announce }
