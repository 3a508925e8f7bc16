// SPDX-License-Identifier: Apache-2.0

package kernel

import "context"

// Counter counts packets and bytes.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Traffic is what a tenant's link has carried since it was made. What comes
// back from outside leaves through the internal NIC itself, not through it.
type Traffic struct {
	FromPods Counter `json:"fromPods"` // received: all that nodes sent to the gateway IP
	ToLink   Counter `json:"toLink"`   // sent: answers to ARP and ICMP
}

// Counters are the counts for status and metrics.
type Counters struct {
	Tenants map[string]Traffic // by plan.TenantID
	Guards  map[string]Counter // dropped packets, by what the guard's rule is for
}

// Counters reads the counts of all tenants.
func (k *Kernel) Counters(ctx context.Context) (Counters, error) {
	out := Counters{Tenants: make(map[string]Traffic)}
	links, err := dumpLinks(true)
	if err != nil {
		return out, err
	}
	ours := ourLinks(links)
	for _, l := range links {
		if ours[l.name].Tenant != "" {
			out.Tenants[l.alias] = Traffic{FromPods: l.rx, ToLink: l.tx}
		}
	}
	out.Guards, err = k.guardCounters(ctx)
	return out, err
}
