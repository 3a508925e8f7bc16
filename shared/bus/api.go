// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"log/slog"
	"time"
)

// Role is the kind of agent: RoleCluster "ca", RoleGateway "gw".
type Role string

const (
	RoleCluster Role = "ca"
	RoleGateway Role = "gw"
)

type AuditOptions struct {
	Dir      string
	Role     Role
	Name     string // cluster's name or gateway's name
	MaxBytes int64
	Clock    func() time.Time
	Log      *slog.Logger
}
type Event struct {
	Cluster string // "" = of no cluster
	Kind    string
	Subject string
	ID      string
	Data    any
}
type Audit struct{}

func NewAudit(conn *Conn, opts AuditOptions) (*Audit, error) { panic("soon") }
func (a *Audit) Emit(e Event) error                          { panic("soon") }
func (a *Audit) EmitAll(events []Event) error                { panic("soon") }
func (a *Audit) Run(ctx context.Context) error               { panic("soon") }

type AuditFilter struct {
	Cluster, Kind string
	Role          Role
	Name          string
	Since         time.Time
	Follow        bool
}
type AuditEvent struct {
	Sequence                          uint64
	NatsSubject                       string
	ID, Source, Type, Subject, BootID string
	Time                              time.Time
	Data                              []byte
}

func ReadAudit(ctx context.Context, conn *Conn, filter AuditFilter, fn func(AuditEvent) error) error {
	panic("soon")
}
