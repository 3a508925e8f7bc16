// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// Counter counts packets and bytes.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func (c Counter) plus(d Counter) Counter { return Counter{c.Packets + d.Packets, c.Bytes + d.Bytes} }

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
	Refused map[string]Counter // packets that were refused ahead of the guards, by plan.Refusal
	// RefusedOf are the refused packets of each tenant, those that guards dropped
	// included, by plan.TenantID and plan.Reason: all that came by its link, and
	// those that carried its mark.
	RefusedOf map[string]map[string]uint64
	// NodeSources are connections that came through a tenant's link with the
	// address of a node, as pods' do for a while after a restart of OVN's
	// controller. They leave translated as any other.
	NodeSources map[string]uint64 // by plan.TenantID
	Strays      []plan.Stray
}

// Counters reads the counts of all tenants, with six requests and two programs
// (one without IPv6), however many tenants there are.
func (k *Kernel) Counters(ctx context.Context) (Counters, error) {
	out := Counters{Tenants: make(map[string]Traffic), Refused: make(map[string]Counter)}
	links, err := dumpLinks(true)
	if err != nil {
		return out, err
	}
	ours, numbers := ourLinks(links), make(map[int]string)
	for _, l := range links {
		if ours[l.name].Tenant != "" {
			numbers[ours[l.name].Number] = l.alias
			out.Tenants[l.alias] = Traffic{FromPods: l.rx, ToLink: l.tx}
		}
	}
	for _, f := range tenant.Families() {
		if t := k.tables[f]; t != nil {
			if err := t.refused(ctx, out.Refused); err != nil {
				return out, err
			}
		}
	}
	if out.NodeSources, err = k.nodeSources(numbers); err != nil {
		return out, err
	}
	if out.RefusedOf, err = k.refusedByTenant(numbers); err != nil {
		return out, err
	}
	if out.Strays, err = k.Strays(ctx); err != nil {
		return out, err
	}
	out.Guards, err = k.guardCounters()
	return out, err
}

// refused adds what our filter chains have refused.
func (t *tables) refused(ctx context.Context, sums map[string]Counter) error {
	saved, err := run(ctx, nil, t.save, "-c", "-t", "filter")
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(saved))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// [packets:bytes] -A chain rule
		counts, rest, ok := strings.Cut(lines.Text(), "] -A ")
		chain, rule, ok2 := strings.Cut(rest, " ")
		if !ok || !ok2 {
			continue
		}
		reason := plan.Refusal(chain, rule)
		if reason == "" {
			continue
		}
		var c Counter
		if _, err := fmt.Sscanf(counts, "[%d:%d", &c.Packets, &c.Bytes); err != nil {
			return fmt.Errorf("%s -c: %q: %w", t.save, lines.Text(), err)
		}
		sums[reason] = sums[reason].plus(c)
	}
	return lines.Err()
}

// TableUse is how full a table of the kernel is. Limit is 0 where the kernel
// does not show it: neighbour tables belong to the whole machine, and network
// namespaces other than its first do not see their limits.
type TableUse struct{ Used, Limit int }

// Tables are the tables of the kernel that can overflow. Neighbours are those of
// the whole machine.
type Tables struct {
	Conntrack TableUse
	// Buckets are those of connection tracking, which hold each entry twice.
	Buckets    int
	Neighbours map[tenant.Family]TableUse
}

// Tables reads how full they are, without going over them.
func (k *Kernel) Tables() (Tables, error) {
	out := Tables{Neighbours: make(map[tenant.Family]TableUse)}
	var err error
	if out.Conntrack.Used, err = k.number("net/netfilter/nf_conntrack_count"); err != nil {
		return out, err
	}
	if out.Conntrack.Limit, err = k.number("net/netfilter/nf_conntrack_max"); err != nil {
		return out, err
	}
	if out.Buckets, err = k.number(keyBuckets); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return out, err
	}
	for f, where := range map[tenant.Family][2]string{tenant.IPv4: {"arp_cache", "ipv4"}, tenant.IPv6: {"ndisc_cache", "ipv6"}} {
		stat, err := os.ReadFile("/proc/thread-self/net/stat/" + where[0])
		if err != nil {
			continue // a kernel without the family
		}
		_, rest, _ := bytes.Cut(stat, []byte("\n"))
		first, _, _ := strings.Cut(strings.TrimSpace(string(rest)), " ")
		used, err := strconv.ParseUint(first, 16, 32)
		if err != nil {
			return out, fmt.Errorf("entries of %s: %w", where[0], err)
		}
		limit, _ := k.number("net/" + where[1] + "/neigh/default/gc_thresh3")
		out.Neighbours[f] = TableUse{int(used), limit}
	}
	return out, nil
}

// number reads a sysctl.
func (k *Kernel) number(key string) (int, error) {
	b, err := os.ReadFile(filepath.Join(k.sysctl, key))
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("sysctl %s: %w", key, err)
	}
	return n, nil
}
