// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"net/netip"
	"time"
)

// Schema is the version of the records in this package.
const Schema = 1

// Tenant is one egress tenant as a gateway has to serve it: one or more
// namespaces that leave the cluster with the same egress IPs.
type Tenant struct {
	Schema int `json:"schema"`
	// Cluster and Name identify the tenant; both stand in its key as well.
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	// UID is the UID of the EgressTenant object, and Generation its
	// metadata.generation. Together they identify this very content: a gateway
	// acknowledges both.
	UID        string `json:"uid"`
	Generation int64  `json:"generation"`
	// Released marks a tombstone: the tenant was released on purpose and every
	// gateway has to remove it. A key that is merely missing is no such order.
	Released bool `json:"released,omitempty"`
	// Namespaces are the members, sorted.
	Namespaces []string `json:"namespaces,omitempty"`
	Pool       string   `json:"pool,omitempty"`
	// Group names the gateway group whose members serve the tenant.
	Group string `json:"group,omitempty"`
	// GatewayIPs are the next hops that OVN sends the tenant's traffic to, at
	// most one for each family; EgressIPs are the source addresses it leaves
	// with, at least one for each family that has a gateway IP. IPv4 first.
	GatewayIPs []netip.Addr `json:"gatewayIPs,omitempty"`
	EgressIPs  []netip.Addr `json:"egressIPs,omitempty"`
}

// Node is one cluster node: the pod subnets behind it, and its addresses on the
// network that it shares with the gateways.
type Node struct {
	Schema  int    `json:"schema"`
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	// Subnets are the node's pod subnets; Addresses hold at most one next hop
	// for each family. A subnet whose family has no address gets no route.
	Subnets   []netip.Prefix `json:"subnets"`
	Addresses []netip.Addr   `json:"addresses"`
}

// Network holds what is true of a cluster as a whole.
type Network struct {
	Schema  int    `json:"schema"`
	Cluster string `json:"cluster"`
	// PodNetworks cover every pod address of the cluster, also of nodes that
	// are not known yet. The gateways' guards cover them.
	PodNetworks []netip.Prefix `json:"podNetworks"`
}

// Ready closes a batch of writes: the records of a cluster are complete and
// consistent if, and only if, they match it.
type Ready struct {
	Schema  int    `json:"schema"`
	Cluster string `json:"cluster"`
	// Epoch is the creation time of the bucket it was written into (RFC 3339
	// with nanoseconds, UTC). Another epoch than the bucket's own means that
	// the record was restored or copied from another incarnation.
	Epoch string `json:"epoch"`
	// Generation never falls: max(previous + 1, Unix milliseconds). A gateway
	// refuses a snapshot that is older than the one it applied.
	Generation int64 `json:"generation"`
	// Count is the number of tenant, node and network records, tombstones
	// included; Hash is Digest over them.
	Count int    `json:"count"`
	Hash  string `json:"hash"`
}

// Heartbeat says that a writer is alive and has seen the cluster at Time.
type Heartbeat struct {
	Schema  int       `json:"schema"`
	Cluster string    `json:"cluster"`
	Writer  string    `json:"writer"`
	Time    time.Time `json:"time"`
}

// Status is a gateway's acknowledgement of one tenant.
type Status struct {
	Schema  int    `json:"schema"`
	Gateway string `json:"gateway"`
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
	// UID and Generation are those of the record that the gateway acted on.
	UID        string `json:"uid"`
	Generation int64  `json:"generation"`
	// Programmed says that the kernel holds everything the record asks for.
	// If not, Reason (CamelCase) and Message say why.
	Programmed bool   `json:"programmed"`
	Reason     string `json:"reason,omitempty"`
	Message    string `json:"message,omitempty"`
	// Time is when the content of this record last changed.
	Time time.Time `json:"time"`
}

// Summary is a gateway's report about itself. It is rewritten every few
// seconds; an old Time means a gateway that is dead or cut off.
type Summary struct {
	Schema  int    `json:"schema"`
	Gateway string `json:"gateway"`
	Group   string `json:"group"`
	Version string `json:"version"`
	// Addresses are the gateway VM's own addresses, which no pool may contain.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Tenants counts the tenants programmed, Failed those that are not, Held
	// those that are kept although their records vanished without a tombstone.
	Tenants int `json:"tenants"`
	Failed  int `json:"failed"`
	Held    int `json:"held"`
	// Applied is the generation of the Ready record in force, for each cluster.
	Applied  map[string]int64 `json:"applied,omitempty"`
	Problems []string         `json:"problems,omitempty"`
	Time     time.Time        `json:"time"`
}
