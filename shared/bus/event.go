// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"egress-gateway.io/shared/tenant"
)

const (
	eventTypePrefix = "io.egress-gateway.v1."
	eventMIME       = "application/cloudevents+json"
	noCluster       = "-" // token for events that are of no cluster; not a legal name
	maxEvent        = 64 << 10
	maxID           = 256
)

// Role is the kind of agent that an event comes from.
type Role string

// The roles, as they stand in subjects.
const (
	RoleCluster Role = "ca"
	RoleGateway Role = "gw"
)

// Event is something that happened, to be told to the audit.
type Event struct {
	// Cluster it is about; empty if about none.
	Cluster string
	// Kind is a DNS label: "alloc", "release", "deny", "apb", "tenant",
	// "conntrack-flush", "connect", "loss" and so on.
	Kind string
	// Subject is what it happened to, such as "tenant/ns-blue".
	Subject string
	// ID, if given, identifies what happened: an event that is emitted again
	// with the same ID within ten minutes is stored once. If empty, the event
	// gets an ID of its own.
	ID string
	// Data is the content, as JSON.
	Data any
}

// AuditEvent is an event as it is read back.
type AuditEvent struct {
	// NatsSubject and NatsSequence say where it stands in the stream.
	NatsSubject  string
	NatsSequence uint64
	// The attributes of CloudEvents. Kind is Type without its prefix.
	ID, Source, Type, Kind, Subject string
	Time                            time.Time
	// BootID and Sequence (1, 2, ...) are of the process that emitted it: a gap
	// means lost events.
	BootID   string
	Sequence string
	Data     json.RawMessage
	// Err is set, and the attributes are not, if the message is no such event.
	Err error
}

// cloudEvent is the JSON form of CloudEvents 1.0.
type cloudEvent struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject,omitempty"`
	Time            time.Time       `json:"time"`
	DataContentType string          `json:"datacontenttype,omitempty"`
	BootID          string          `json:"bootid,omitempty"`
	Sequence        string          `json:"sequence,omitempty"`
	Data            json.RawMessage `json:"data,omitempty"`
}

// spooled is what the spool holds of an event.
type spooled struct {
	Subject string          `json:"subject"` // of the NATS message
	ID      string          `json:"id"`
	Event   json.RawMessage `json:"event"`
}

func auditSource(role Role, name string) string {
	return "/egress-gateway/" + string(role) + "/" + name
}

func auditSubject(cluster string, role Role, name, kind string) string {
	if cluster == "" {
		cluster = noCluster
	}
	return auditPrefix + "." + cluster + "." + string(role) + "." + name + "." + kind
}

// check says why an event can not be told. An ID becomes a header and must be
// fit for one.
func (e Event) check() error {
	if err := tenant.ValidateLabel(e.Kind); err != nil {
		return fmt.Errorf("audit event kind: %w", err)
	}
	if e.Cluster != "" {
		if err := tenant.ValidateLabel(e.Cluster); err != nil {
			return fmt.Errorf("audit event %s: cluster: %w", e.Kind, err)
		}
	}
	if len(e.ID) > maxID {
		return fmt.Errorf("audit event %s: ID of %d bytes; at most %d are allowed", e.Kind, len(e.ID), maxID)
	}
	for _, r := range e.ID {
		if r <= ' ' || r > '~' {
			return fmt.Errorf("audit event %s: ID %q: want printable ASCII without spaces", e.Kind, e.ID)
		}
	}
	return nil
}

// DecodeEvent decodes an event of the stream EGRESS_AUDIT.
func DecodeEvent(b []byte) (AuditEvent, error) {
	var c cloudEvent
	if err := json.Unmarshal(b, &c); err != nil {
		return AuditEvent{}, fmt.Errorf("no CloudEvents JSON: %w", err)
	}
	kind, ok := cutEventType(c.Type)
	switch {
	case c.SpecVersion != "1.0":
		return AuditEvent{}, fmt.Errorf("CloudEvents version %q; want 1.0", c.SpecVersion)
	case c.ID == "" || c.Source == "":
		return AuditEvent{}, errors.New("event without id or source")
	case !ok:
		return AuditEvent{}, fmt.Errorf("event of type %q; want %s<kind>", c.Type, eventTypePrefix)
	}
	return AuditEvent{
		ID: c.ID, Source: c.Source, Type: c.Type, Kind: kind, Subject: c.Subject, Time: c.Time,
		BootID: c.BootID, Sequence: c.Sequence, Data: c.Data,
	}, nil
}

func cutEventType(s string) (string, bool) {
	if len(s) <= len(eventTypePrefix) || s[:len(eventTypePrefix)] != eventTypePrefix {
		return "", false
	}
	return s[len(eventTypePrefix):], true
}

// decodeSpooled decodes what the spool holds.
func decodeSpooled(b []byte) (spooled, error) {
	var s spooled
	if err := json.Unmarshal(b, &s); err != nil {
		return spooled{}, fmt.Errorf("spooled event: %w", err)
	}
	if s.Subject == "" || s.ID == "" || len(s.Event) == 0 {
		return spooled{}, errors.New("spooled event without subject, id or content")
	}
	return s, nil
}
