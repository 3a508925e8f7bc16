// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// MaxRecord is the size in bytes above which a record is refused unread.
const MaxRecord = 256 << 10

// Encode returns the JSON form of a record of this package. The result is
// deterministic: equal records have equal bytes. It panics on types that JSON
// can not hold, of which this package has none.
func Encode(record any) []byte {
	b, err := json.Marshal(record)
	if err != nil {
		panic("tenant: encode: " + err.Error())
	}
	return b
}

// DecodeTenant decodes and validates the record at key k.
func DecodeTenant(k Key, b []byte) (Tenant, error) {
	t, err := decode[Tenant](b)
	if err == nil {
		err = errors.Join(t.Validate(), keyMatches(k, TenantKey(t.Cluster, t.Name)))
	}
	return keep(t, k.String(), err)
}

// DecodeNode decodes and validates the record at key k.
func DecodeNode(k Key, b []byte) (Node, error) {
	n, err := decode[Node](b)
	if err == nil {
		err = errors.Join(n.Validate(), keyMatches(k, NodeKey(n.Cluster, n.Name)))
	}
	return keep(n, k.String(), err)
}

// DecodeNetwork decodes and validates the record at key k.
func DecodeNetwork(k Key, b []byte) (Network, error) {
	n, err := decode[Network](b)
	if err == nil {
		err = errors.Join(n.Validate(), keyMatches(k, NetworkKey(n.Cluster)))
	}
	return keep(n, k.String(), err)
}

// DecodeReady decodes the Ready record at key k.
func DecodeReady(k Key, b []byte) (Ready, error) {
	r, err := decode[Ready](b)
	if err == nil {
		err = errors.Join(schemaError(r.Schema), keyMatches(k, ReadyKey(r.Cluster)))
	}
	return keep(r, k.String(), err)
}

// DecodeHeartbeat decodes the Heartbeat record at key k.
func DecodeHeartbeat(k Key, b []byte) (Heartbeat, error) {
	h, err := decode[Heartbeat](b)
	if err == nil {
		err = errors.Join(schemaError(h.Schema), keyMatches(k, HeartbeatKey(h.Cluster)))
	}
	return keep(h, k.String(), err)
}

// DecodeStatus decodes the Status record at key of the status bucket.
func DecodeStatus(key string, b []byte) (Status, error) {
	s, err := decode[Status](b)
	if err == nil {
		err = schemaError(s.Schema)
		if want := StatusKey(s.Gateway, s.Cluster, s.Name); want != key {
			err = errors.Join(err, fmt.Errorf("the record belongs to key %q", want))
		}
	}
	return keep(s, key, err)
}

// DecodeSummary decodes the Summary record at key of the status bucket.
func DecodeSummary(key string, b []byte) (Summary, error) {
	s, err := decode[Summary](b)
	if err == nil {
		err = schemaError(s.Schema)
		if want := SummaryKey(s.Gateway); want != key {
			err = errors.Join(err, fmt.Errorf("the record belongs to key %q", want))
		}
	}
	return keep(s, key, err)
}

// Digest is the hash that a Ready record carries: SHA-256 over the sorted keys
// and the values of a cluster's tenant, node and network records. Lengths are
// hashed along, so that no two different sets collide by concatenation.
func Digest(values map[string][]byte) string {
	return DigestSorted(slices.Sorted(maps.Keys(values)), values)
}

// DigestSorted is Digest for a caller who has the keys in order.
func DigestSorted(keys []string, values map[string][]byte) string {
	h := sha256.New()
	var b []byte
	for _, k := range keys {
		v := values[k]
		b = append(strconv.AppendInt(b[:0], int64(len(k)), 10), ' ')
		b = append(append(b, k...), ' ')
		b = append(strconv.AppendInt(b, int64(len(v)), 10), ' ')
		h.Write(append(b, v...))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// decode accepts unknown fields: a newer writer of the same schema may add
// some that an older reader need not know.
func decode[T any](b []byte) (T, error) {
	var v T
	if len(b) > MaxRecord {
		return v, fmt.Errorf("record of %d bytes; at most %d are accepted", len(b), MaxRecord)
	}
	// The version first: a record of another schema need not even fit T.
	var head struct {
		Schema *int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return v, fmt.Errorf("no JSON record: %w", err)
	}
	if head.Schema == nil {
		return v, errors.New("no schema version")
	}
	if err := schemaError(*head.Schema); err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("no such record: %w", err)
	}
	return v, nil
}

func keyMatches(have, want Key) error {
	if have != want {
		return fmt.Errorf("the record belongs to key %q", want)
	}
	return nil
}

func keep[T any](v T, key string, err error) (T, error) {
	if err != nil {
		var zero T
		return zero, fmt.Errorf("record %s: %w", key, err)
	}
	return v, nil
}
