// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// ethernet is how many bytes a MAC has.
const ethernet = 6

// readNeighbours reads the table that leads neighbour requests to links. What is
// not as plans make it gives a shape that no plan has.
func (k *Kernel) readNeighbours(ctx context.Context) (plan.Neighbours, error) {
	return atOnce(ctx, k, func() (plan.Neighbours, error) {
		n, l := plan.Neighbours{MACs: make(map[netip.Addr]string, len(k.seen.neighbours.MACs))}, nftList{k.lists, neighbourTable()}
		sets, exists, err := l.sets()
		if err != nil || !exists {
			return n, err
		}
		var shapes []string
		for _, s := range sets {
			err := l.elements(s.name, func(element []byte) error {
				if ip, mac, ok := parseNeighbour(s, element); ok {
					n.MACs[ip] = mac
				} else {
					shapes = append(shapes, "unknown element")
				}
				return nil
			})
			if err != nil {
				return n, err
			}
		}
		if dormant, err := l.dormant(); err != nil {
			return n, err
		} else if dormant {
			shapes = append(shapes, "switched off")
		}
		rules, err := l.rules()
		for _, r := range rules {
			shapes = append(shapes, r.comment)
		}
		n.Shape = strings.Join(shapes, " ") + odd
		if len(shapes) == 2 && shapes[0] == shapes[1] {
			n.Shape = shapes[0]
		}
		return n, err
	})
}

// parseNeighbour reads an element of one of the two maps: from an address to a MAC.
func parseNeighbour(of nftSet, element []byte) (ip netip.Addr, mac string, ok bool) {
	e, plain := parseElement(element)
	ip, ok = netip.AddrFromSlice(e.key)
	if !ok || !plain || e.end || len(e.value) != ethernet || of.name != plan.NeighbourMap(tenant.FamilyOf(ip)) {
		return netip.Addr{}, "", false
	}
	return ip, net.HardwareAddr(e.value).String(), true
}
