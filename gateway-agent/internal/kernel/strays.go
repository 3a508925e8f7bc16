// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// counted is an element that the kernel added, with its count.
type counted struct {
	ip      netip.Addr // of a stray
	mark    uint32
	packets uint64
}

// counts returns the elements of a set that the kernel fills; ok is false for
// any other object.
func (o nftObject) counts() (out []counted, ok bool) {
	if o.Set == nil || o.Set.Name != plan.SetNodeSources() && !slices.Contains(plan.SetStrays(), o.Set.Name) {
		return nil, false
	}
	for _, raw := range o.Set.Elem {
		var e struct {
			Elem struct {
				Val     json.RawMessage `json:"val"`
				Counter Counter         `json:"counter"`
			} `json:"elem"`
		}
		if json.Unmarshal(raw, &e) != nil {
			continue
		}
		c := counted{packets: e.Elem.Counter.Packets}
		var key struct {
			Concat [2]json.RawMessage `json:"concat"`
		}
		if json.Unmarshal(e.Elem.Val, &c.mark) != nil {
			if json.Unmarshal(e.Elem.Val, &key) != nil || json.Unmarshal(key.Concat[0], &c.ip) != nil ||
				json.Unmarshal(key.Concat[1], &c.mark) != nil {
				continue
			}
		}
		out = append(out, c)
	}
	return out, true
}

// counted lists the elements of sets that the kernel fills.
func (k *Kernel) counted(ctx context.Context, sets ...string) ([]counted, error) {
	var out []counted
	for _, set := range sets {
		objects, err := k.listNFT(ctx, "-j", "list", "set", "inet", plan.GuardTable, set)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			list, _ := o.counts()
			out = append(out, list...)
		}
	}
	return out, nil
}

// nodeSources counts by tenant; numbers are the tenants' names by number.
func (k *Kernel) nodeSources(ctx context.Context, numbers map[int]string) (map[string]uint64, error) {
	list, err := k.counted(ctx, plan.SetNodeSources())
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
func (k *Kernel) Strays(ctx context.Context) ([]plan.Stray, error) {
	list, err := k.counted(ctx, plan.SetStrays()...)
	var out []plan.Stray
	for _, e := range list {
		out = append(out, plan.Stray{Pod: e.ip, Number: plan.NumberOf(k.host.MarkMask, e.mark), Packets: e.packets})
	}
	return out, err
}
