// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/json"
	"net/netip"
	"strings"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// readNeighbours reads, as nft lists it, the table that leads neighbour requests to links.
// What is not as plans make it gives a shape that no plan has.
func readNeighbours(l listing) (plan.Neighbours, error) {
	n := plan.Neighbours{MACs: make(map[netip.Addr]string)}
	objects, err := l.objects()
	var shapes []string
	for _, o := range objects {
		switch {
		case o.Map != nil:
			for _, e := range o.Map.Elem {
				var key, mac string
				ip, bad := netip.Addr{}, json.Unmarshal(e[0], &key)
				if bad == nil {
					ip, bad = plan.ParseNeighbour(key)
				}
				if bad != nil || json.Unmarshal(e[1], &mac) != nil {
					shapes = append(shapes, "unknown element")
					continue
				}
				n.MACs[ip] = mac
			}
		case o.Rule != nil:
			shapes = append(shapes, o.Rule.Comment)
		}
	}
	if len(objects) > 0 {
		n.Shape = strings.Join(shapes, " ") + "!"
	}
	if len(shapes) == 2 && shapes[0] == shapes[1] {
		n.Shape = shapes[0]
	}
	return n, err
}
