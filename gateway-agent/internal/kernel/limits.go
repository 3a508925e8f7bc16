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
	// bucketsPerTenant are far fewer than entries could be: each look for the
	// connections of one tenant goes over all buckets, 5 to 10 ms for 262,144.
	bucketsPerTenant = 64
	leastBuckets     = 65536
	// movedAtMost bounds how many entries the kernel may have to move to other
	// buckets, for half a microsecond to one each, while all packets wait
	// (nf_conntrack_hash_resize of net/netfilter/nf_conntrack_core.c).
	movedAtMost = 10000
	// crowded is how many entries there are for each bucket, which hold two of
	// each, when finding one takes longer than it need.
	crowded        = 4
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
// write those of connection tracking and does not see the others. It returns
// those that stay low. The buckets of connection tracking are raised only while
// there are few connections.
func (k *Kernel) RaiseLimits(tenants, nodes int) []Limit {
	neighbours := leastNeighbour + perNode*nodes
	wants := []struct {
		key   string
		value int
	}{{"net/netfilter/nf_conntrack_max", max(leastFlows, flowsPerTenant*tenants)},
		{keyBuckets, max(leastBuckets, bucketsPerTenant*tenants)}}
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
		if err == nil && have < w.value && w.key == keyBuckets {
			err = k.mayMove()
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

const keyBuckets = "net/netfilter/nf_conntrack_buckets"

// mayMove fails while there are many connections.
func (k *Kernel) mayMove() error {
	entries, err := k.number("net/netfilter/nf_conntrack_count")
	if err == nil && entries > movedAtMost {
		err = fmt.Errorf("there are more than %d connections, and moving them would hold up all packets: raise it on the machine (options nf_conntrack hashsize= in /etc/modprobe.d), or start the agent before the traffic", movedAtMost)
	}
	return err
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
	if n := tables.Buckets; n > 0 && tables.Conntrack.Used > crowded*n {
		out = append(out, Check{Name: "buckets of connection tracking", Err: fmt.Errorf("there are more than %d connections for each of %d, and each packet takes longer to find its own", crowded, n),
			Remedy: "raise net.netfilter.nf_conntrack_buckets on the machine (not in a network namespace) at a quiet time: all packets wait for half a microsecond to one for each connection"})
	}
	for _, f := range tenant.Families() {
		look("neighbours "+f.String(), tables.Neighbours[f], fmt.Sprintf("raise net.ipv%d.neigh.default.gc_thresh3 on the machine: once it is full, hosts can not be reached", f))
	}
	return out, nil
}
