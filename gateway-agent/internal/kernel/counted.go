// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// counted is an element that the kernel added to a set, with its count.
type counted struct {
	set     string
	key     []byte
	ip      netip.Addr // of a stray
	link    string     // of a refused packet
	value   uint32     // a mark, or the reason for which a link's packets were refused
	packets uint64
}

// countedIn lists the elements of sets that the kernel fills; none of a set that
// is not there.
func countedIn(sets ...string) ([]counted, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	var out []counted
	for _, name := range sets {
		list, err := c.GetSetElements(guardSet(name))
		if isMissing(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list set %s: %w", name, err)
		}
		for _, e := range list {
			if n, ok := parseCounted(name, e); ok {
				out = append(out, n)
			}
		}
	}
	return out, nil
}

// parseCounted reads "mark", "address . mark", or "link . value".
func parseCounted(set string, e nftables.SetElement) (counted, bool) {
	at := len(e.Key) - 4
	if at < 0 {
		return counted{}, false
	}
	n := counted{set: set, key: e.Key, value: binary.NativeEndian.Uint32(e.Key[at:])}
	if e.Counter != nil {
		n.packets = e.Counter.Packets
	}
	switch {
	case at == 0:
		return n, true
	case set == plan.SetRefused():
		name, _, _ := bytes.Cut(e.Key[:at], []byte{0})
		n.link = string(name)
		return n, n.link != ""
	}
	var ok bool
	n.ip, ok = netip.AddrFromSlice(e.Key[:at])
	return n, ok
}

// number is that of the tenant that was counted, 0 if it is none.
func (n counted) number(mask uint32) int {
	if n.set == plan.SetRefused() {
		number, _ := plan.RefusedOf(mask, n.link, n.value)
		return number
	}
	return plan.NumberOf(mask, n.value)
}

// forgetCounts has the tenant of a link that is about to be made begin at zero,
// whoever had its number before. What can not be forgotten is a count that is
// too high, and keeps nobody from being served.
func (a *applier) forgetCounts(l plan.Link) {
	if a.counts == nil {
		a.counts = make(map[int][]counted)
		list, err := countedIn(append(plan.SetStrays(), plan.SetNodeSources(), plan.SetRefused())...)
		if err != nil {
			a.k.log.Warn("the counts of former tenants can not be read", "err", err)
		}
		for _, n := range list {
			number := n.number(a.k.host.MarkMask)
			a.counts[number] = append(a.counts[number], n)
		}
	}
	if len(a.counts[l.Number]) == 0 {
		return
	}
	if _, err := a.k.linkIndex(l.Name); err == nil {
		return // it is there, and is to be mended
	}
	for _, n := range a.counts[l.Number] {
		err := a.k.following(nil, 1, func() error {
			return a.k.withNFT(func(c *nftables.Conn) error {
				return c.SetDeleteElements(guardSet(n.set), []nftables.SetElement{{Key: n.key}})
			})
		})
		if err != nil && !isMissing(err) { // some go by themselves
			a.k.log.Warn("a count of a former tenant stays", "tenant", l.Tenant, "set", n.set, "err", err)
		}
	}
}
