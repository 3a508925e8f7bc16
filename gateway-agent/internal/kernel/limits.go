// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"egress-gateway.io/shared/tenant"
)

// What the tables of the kernel need room for. Tenants' links have no neighbours
// of their own: all nodes are on the internal NIC, all routers on the external.
const (
	flowsPerTenant = 1024
	leastFlows     = 262144
	leastNeighbour = 4096
	perNode        = 2
	nearlyFull     = 80 // percent
)

// Limit is a limit of the kernel that is lower than it should be and could not
// be raised.
type Limit struct {
	Key          string
	Value, Wants int
	Err          error
}

// RaiseLimits raises the limits of connection tracking and of the neighbour
// tables to what so many tenants and nodes need; it never lowers one. These
// limits are the machine's: a network namespace other than its first can not
// write the first and does not see the others. It returns those that stay low.
func (k *Kernel) RaiseLimits(tenants, nodes int) []Limit {
	neighbours := leastNeighbour + perNode*nodes
	wants := []struct {
		key   string
		value int
	}{{"net/netfilter/nf_conntrack_max", max(leastFlows, flowsPerTenant*tenants)}}
	for _, family := range []string{"ipv4", "ipv6"} {
		// From the top: the kernel collects above the lower two.
		for i, share := range []int{1, 2, 4} {
			key := fmt.Sprintf("net/%s/neigh/default/gc_thresh%d", family, 3-i)
			wants = append(wants, struct {
				key   string
				value int
			}{key, neighbours / share})
		}
	}
	var low []Limit
	for _, w := range wants {
		have, err := k.number(w.key)
		if errors.Is(err, fs.ErrNotExist) {
			low = append(low, Limit{w.key, 0, w.value, errNotShown})
			continue
		}
		if err == nil && have < w.value {
			err = os.WriteFile(filepath.Join(k.sysctl, w.key), []byte(strconv.Itoa(w.value)), 0o644)
		}
		if err != nil {
			low = append(low, Limit{w.key, have, w.value, err})
		}
	}
	return low
}

var errNotShown = errors.New("this network namespace does not show it: it is set for the whole machine, outside")

// NearlyFull tells which tables are filled to 80 percent or more.
func (k *Kernel) NearlyFull() ([]Check, error) {
	tables, err := k.Tables()
	if err != nil {
		return nil, err
	}
	var out []Check
	look := func(name string, use TableUse, remedy string) {
		if use.Limit > 0 && use.Used*100 >= use.Limit*nearlyFull {
			out = append(out, Check{Name: name, Err: fmt.Errorf("nearly full: %d %% or more of %d entries are in use", nearlyFull, use.Limit), Remedy: remedy})
		}
	}
	look("connection tracking", tables.Conntrack, "raise net.netfilter.nf_conntrack_max on the machine (not in a network namespace), or look for who makes so many connections: once it is full, new ones fail")
	for _, f := range tenant.Families() {
		look("neighbours "+f.String(), tables.Neighbours[f], fmt.Sprintf("raise net.ipv%d.neigh.default.gc_thresh3 on the machine: once it is full, hosts can not be reached", f))
	}
	return out, nil
}
