// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// StateSchema is the version of the disk copy.
const StateSchema = 1

// MaxState is the size in bytes above which a disk copy is not read: many times
// what MaxNumber tenants need.
const MaxState = 64 << 20

// stateFile is the disk copy. The hash is over the bytes of State as they
// stand: a flipped bit in an address would be a wrong source address.
type stateFile struct {
	Schema int             `json:"schema"`
	SHA256 string          `json:"sha256"`
	State  json.RawMessage `json:"state"`
}

// EncodeState returns the disk copy of m. Equal memories have equal bytes.
func EncodeState(m Memory) ([]byte, error) {
	b, _, err := encodeState(m)
	return b, err
}

// encodeState returns the checksum as well. The file is put together by hand: a
// JSON encoder would go over a megabyte once more.
func encodeState(m Memory) (file []byte, checksum string, err error) {
	state, err := json.Marshal(m)
	if err != nil {
		return nil, "", fmt.Errorf("encode the state: %w", err)
	}
	checksum = sum(state)
	file = fmt.Appendf(nil, `{"schema":%d,"sha256":%q,"state":`, StateSchema, checksum)
	return append(append(file, state...), "}\n"...), checksum, nil
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// DecodeState is the inverse of EncodeState. It fails if the file as a whole is
// not one that EncodeState wrote. Records in it that this version does not
// accept are left out and returned as problems; the others stand.
func DecodeState(b []byte) (Memory, []plan.Problem, error) {
	m, problems, _, err := decodeAll(b, nil)
	return m, problems, err
}

// decodeAll decodes a disk copy with its journal. checksum is the copy's, to go
// on from; it is empty if the journal had something to say.
func decodeAll(b, journal []byte) (m Memory, problems []plan.Problem, checksum string, err error) {
	f, err := openState(b)
	if err != nil {
		return m, nil, "", err
	}
	if err := json.Unmarshal(f.State, &m); err != nil {
		return m, nil, "", fmt.Errorf("no such state: %w", err)
	}
	if m.Clusters == nil {
		m.Clusters = map[string]Cluster{}
	}
	checksum = f.SHA256
	lines, err := replay(journal, f.SHA256, &m)
	if err != nil {
		return m, nil, "", err
	}
	if lines > 0 {
		checksum = ""
	}
	return m, dropInvalid(m), checksum, nil
}

// openState checks the file around a state.
func openState(b []byte) (stateFile, error) {
	var f stateFile
	if len(b) > MaxState {
		return f, fmt.Errorf("state of %d bytes; at most %d are read", len(b), MaxState)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("no JSON state: %w", err)
	}
	if f.Schema != StateSchema {
		return f, fmt.Errorf("state of schema version %d; this program reads %d", f.Schema, StateSchema)
	}
	if have := sum(bytes.TrimSpace(f.State)); have != f.SHA256 {
		return f, errors.New("the state does not match its checksum: it was cut off, damaged or edited")
	}
	return f, nil
}

// dropInvalid removes what does not validate, or stands under another's name,
// from m. Of two tenants with one number the second loses its number only.
func dropInvalid(m Memory) []plan.Problem {
	var problems []plan.Problem
	bad := func(p plan.Problem, err error) {
		p.Reason, p.Message = ReasonBadRecord, "in the disk copy: "+err.Error()
		problems = append(problems, p)
	}
	owner := map[int]Ref{}
	for _, name := range sortedKeys(m.Clusters) {
		c := m.Clusters[name]
		if err := tenant.ValidateLabel(name); err != nil {
			delete(m.Clusters, name)
			bad(plan.Problem{Cluster: name}, err)
			continue
		}
		if n := c.Network; n != nil && (n.Validate() != nil || n.Cluster != name) {
			bad(plan.Problem{Cluster: name}, cmp.Or(n.Validate(), errors.New("network record of another cluster")))
			c.Network = nil
			m.Clusters[name] = c
		}
		for key, n := range c.Nodes {
			if n.Validate() != nil || n.Cluster != name || n.Name != key {
				delete(c.Nodes, key)
				bad(plan.Problem{Cluster: name, Node: key}, cmp.Or(n.Validate(), errors.New("node record of another name")))
			}
		}
		for _, key := range sortedKeys(c.Tenants) {
			e := c.Tenants[key]
			if err := validateEntry(name, key, e); err != nil {
				delete(c.Tenants, key)
				bad(plan.Problem{Cluster: name, Tenant: key}, err)
				continue
			}
			if first, taken := owner[e.Number]; taken && e.Number != 0 {
				bad(plan.Problem{Cluster: name, Tenant: key}, fmt.Errorf("number %d belongs to %s; another one is assigned", e.Number, first))
				e.Number = 0
				c.Tenants[key] = e
			}
			owner[e.Number] = Ref{name, key}
		}
	}
	return problems
}

func validateEntry(cluster, name string, e Entry) error {
	switch t := e.Record; {
	case t.Cluster != cluster || t.Name != name:
		return fmt.Errorf("the record belongs to %s/%s", t.Cluster, t.Name)
	case t.Released:
		return errors.New("a tombstone is nothing to serve")
	case e.Number < 0 || e.Number > plan.MaxNumber:
		return fmt.Errorf("number %d; want 1 to %d", e.Number, plan.MaxNumber)
	case e.Adopted:
		t.UID = cmp.Or(t.UID, "adopted")
		return t.Validate()
	default:
		return t.Validate()
	}
}
