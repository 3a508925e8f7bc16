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
		if id, known := numbers[plan.NumberOf(k.host.MarkMask, e.mark)]; known {
			out[id] += e.packets
		}
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
		out = append(out, plan.Stray{Pod: e.ip, Number: plan.NumberOf(k.host.MarkMask, e.mark), Packets: e.packets})
	}
	return out, err
}
