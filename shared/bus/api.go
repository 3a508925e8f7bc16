// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"log/slog"
	"time"

	"egress-gateway.io/shared/tenant"
)

// Config: embed as `NATS bus.Config` in an envconfig struct.
type Config struct {
	URL          []string `default:"nats://127.0.0.1:4222"`
	CredsFile    string   `split_words:"true"`
	NkeyFile     string   `split_words:"true"`
	User         string
	PasswordFile string `split_words:"true"`
	CaFile       string `split_words:"true"`
	CertFile     string `split_words:"true"`
	KeyFile      string `split_words:"true"`
	TLSFirst     bool   `split_words:"true"`
	Replicas     int    `default:"1"`
}

func (c Config) Validate(prefix string) error { panic("soon") }

type Option func(*connOptions)
type connOptions struct{}

func WithVersion(v string) Option { panic("soon") }

type Conn struct{}

type StateChange struct {
	Connected bool
	URL       string
	Err       error
	Time      time.Time
}

func Connect(ctx context.Context, cfg Config, name string, log *slog.Logger, opts ...Option) (*Conn, error) {
	panic("soon")
}
func (c *Conn) Connected() bool                    { panic("soon") }
func (c *Conn) OnStateChange(fn func(StateChange)) { panic("soon") }
func (c *Conn) Close() error                       { panic("soon") }

type Problem struct {
	Key   string
	Since time.Time
	Err   error
}
type View struct {
	Ready     tenant.Ready
	Tenants   []tenant.Tenant
	Nodes     []tenant.Node
	Network   *tenant.Network
	Problems  []Problem
	Heartbeat tenant.Heartbeat
}
type FollowerOptions struct {
	Initial map[string]View
	Clock   func() time.Time
	Log     *slog.Logger
}
type Follower struct{}

func NewFollower(conn *Conn, opts FollowerOptions) *Follower { panic("soon") }
func (f *Follower) Run(ctx context.Context) error            { panic("soon") }
func (f *Follower) Changed() <-chan struct{}                 { panic("soon") }
func (f *Follower) Views() map[string]View                   { panic("soon") }
func (f *Follower) Problems() []Problem                      { panic("soon") }

type State struct {
	Tenants []tenant.Tenant
	Nodes   []tenant.Node
	Network *tenant.Network
}
type SyncResult struct {
	Written, Released, Purged int
	Generation                int64
}
type WriterOptions struct {
	Identity string
	Clock    func() time.Time
	Log      *slog.Logger
}
type Writer struct{}

func NewWriter(conn *Conn, cluster string, opts WriterOptions) *Writer  { panic("soon") }
func (w *Writer) Run(ctx context.Context) error                         { panic("soon") }
func (w *Writer) Changed() <-chan struct{}                              { panic("soon") }
func (w *Writer) Sync(ctx context.Context, s State) (SyncResult, error) { panic("soon") }
func (w *Writer) Heartbeat(ctx context.Context) error                   { panic("soon") }

type StatusOptions struct {
	Clock func() time.Time
	Log   *slog.Logger
}
type StatusWriter struct{}

func NewStatusWriter(conn *Conn, gateway string, opts StatusOptions) *StatusWriter { panic("soon") }
func (w *StatusWriter) Run(ctx context.Context) error                              { panic("soon") }
func (w *StatusWriter) Changed() <-chan struct{}                                   { panic("soon") }

// Sync: keys are tenant.StatusKey and tenant.SummaryKey.
func (w *StatusWriter) Sync(ctx context.Context, want map[string][]byte) (SyncResult, error) {
	panic("soon")
}

type StatusFollower struct{}

func NewStatusFollower(conn *Conn, opts StatusOptions) *StatusFollower { panic("soon") }
func (f *StatusFollower) Run(ctx context.Context) error                { panic("soon") }
func (f *StatusFollower) Changed() <-chan struct{}                     { panic("soon") }
func (f *StatusFollower) Statuses(cluster string) map[string][]tenant.Status {
	panic("soon")
}
func (f *StatusFollower) Summaries() []tenant.Summary { panic("soon") }
func (f *StatusFollower) Problems() []Problem         { panic("soon") }

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
