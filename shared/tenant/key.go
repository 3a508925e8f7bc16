// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"fmt"
	"strings"
)

// Kind says what a key of the state bucket holds.
type Kind string

// The kinds of records in the state bucket.
const (
	KindTenant    Kind = "tenant"
	KindNode      Kind = "node"
	KindNetwork   Kind = "network"
	KindReady     Kind = "ready"
	KindHeartbeat Kind = "heartbeat"
)

// The last token of the keys that exist once for each cluster.
const (
	networkToken   = "network"
	readyToken     = "ready"
	heartbeatToken = "heartbeat"
)

// Key names a record of the state bucket: `<cluster>.tenant.<name>`,
// `<cluster>.node.<name>`, `<cluster>.meta.{network,ready,heartbeat}`.
// Name may contain dots (node names do), Cluster may not.
type Key struct {
	Cluster string
	Kind    Kind
	Name    string // of a tenant or a node, else empty
}

// String returns the key as it stands in the bucket.
func (k Key) String() string {
	switch k.Kind {
	case KindTenant, KindNode:
		return k.Cluster + "." + string(k.Kind) + "." + k.Name
	default:
		return k.Cluster + ".meta." + string(k.Kind)
	}
}

// ParseKey is the inverse of Key.String. It fails on anything that String
// does not produce from valid names.
func ParseKey(s string) (Key, error) {
	cluster, rest, _ := strings.Cut(s, ".")
	kind, name, _ := strings.Cut(rest, ".")
	k := Key{Cluster: cluster, Kind: Kind(kind), Name: name}
	switch kind {
	case string(KindTenant), string(KindNode):
		if err := ValidateName(name); err != nil {
			return Key{}, fmt.Errorf("key %q: %w", s, err)
		}
	case "meta":
		if name != networkToken && name != readyToken && name != heartbeatToken {
			return Key{}, fmt.Errorf("key %q: unknown meta record %q", s, name)
		}
		k = Key{Cluster: cluster, Kind: Kind(name)}
	default:
		return Key{}, fmt.Errorf("key %q: unknown kind %q; want <cluster>.tenant.<name>, <cluster>.node.<name> or <cluster>.meta.<record>", s, kind)
	}
	if err := ValidateLabel(cluster); err != nil {
		return Key{}, fmt.Errorf("key %q: cluster: %w", s, err)
	}
	return k, nil
}

// TenantKey returns the key of a tenant's record.
func TenantKey(cluster, name string) Key { return Key{cluster, KindTenant, name} }

// NodeKey returns the key of a node's record.
func NodeKey(cluster, name string) Key { return Key{cluster, KindNode, name} }

// NetworkKey returns the key of a cluster's Network record.
func NetworkKey(cluster string) Key { return Key{cluster, KindNetwork, ""} }

// ReadyKey returns the key of a cluster's Ready record.
func ReadyKey(cluster string) Key { return Key{cluster, KindReady, ""} }

// HeartbeatKey returns the key of a cluster's Heartbeat record.
func HeartbeatKey(cluster string) Key { return Key{cluster, KindHeartbeat, ""} }

// SummaryKey returns the key of a gateway's Summary in the status bucket.
func SummaryKey(gateway string) string { return gateway + ".summary" }

// StatusKey returns the key of a gateway's Status of one tenant in the status
// bucket: `<gateway>.tenant.<cluster>.<name>`.
func StatusKey(gateway, cluster, name string) string {
	return gateway + ".tenant." + cluster + "." + name
}

// ParseStatusKey splits a key of the status bucket. cluster and name are empty
// for a Summary.
func ParseStatusKey(s string) (gateway, cluster, name string, err error) {
	gateway, rest, _ := strings.Cut(s, ".")
	if err := ValidateLabel(gateway); err != nil {
		return "", "", "", fmt.Errorf("key %q: gateway: %w", s, err)
	}
	if rest == "summary" {
		return gateway, "", "", nil
	}
	kind, rest, _ := strings.Cut(rest, ".")
	cluster, name, _ = strings.Cut(rest, ".")
	if kind != "tenant" || ValidateLabel(cluster) != nil || ValidateName(name) != nil {
		return "", "", "", fmt.Errorf("key %q: want <gateway>.summary or <gateway>.tenant.<cluster>.<name>", s)
	}
	return gateway, cluster, name, nil
}
