// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// nodeSources counts by tenant; numbers are the tenants' names by number.
func (k *Kernel) nodeSources(numbers map[int]string) (map[string]uint64, error) {
	list, err := countedIn(plan.SetNodeSources())
	out := make(map[string]uint64)
	for _, e := range list {
		if id, known := numbers[plan.NumberOf(k.host.MarkMask, e.value)]; known {
			out[id] += e.packets
		}
	}
	return out, err
}

// refusedByTenant counts by tenant and reason; numbers are as for nodeSources.
func (k *Kernel) refusedByTenant(numbers map[int]string) (map[string]map[string]uint64, error) {
	list, err := countedIn(plan.SetRefused())
	out := make(map[string]map[string]uint64)
	for _, e := range list {
		n, why := plan.RefusedOf(k.host.MarkMask, e.link, e.value)
		id, known := numbers[n]
		if !known {
			continue
		}
		if out[id] == nil {
			out[id] = make(map[string]uint64)
		}
		out[id][why.String()] += e.packets
	}
	return out, err
}

// Strays returns the pods whose packets have come past the tenants' links
// within the last moments. Its cost depends on their number alone. Safe for
// concurrent use.
func (k *Kernel) Strays(context.Context) ([]plan.Stray, error) {
	list, err := countedIn(plan.SetStrays()...)
	var out []plan.Stray
	for _, e := range list {
		out = append(out, plan.Stray{Pod: e.ip, Number: plan.NumberOf(k.host.MarkMask, e.value), Packets: e.packets})
	}
	return out, err
}
