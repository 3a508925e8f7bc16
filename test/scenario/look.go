// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"text/tabwriter"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"egress-gateway.io/shared/bus"
)

// Table prints a kind as `kubectl get` would: the API server itself says which
// columns there are.
func (c *Cluster) Table(ctx context.Context, kind schema.GroupVersionResource) (string, error) {
	raw, err := c.Core.Discovery().RESTClient().Get().
		AbsPath("/apis", kind.Group, kind.Version, kind.Resource).
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("get table of %s: %w", kind.Resource, err)
	}
	var table metav1.Table
	if err := json.Unmarshal(raw, &table); err != nil {
		return "", fmt.Errorf("read table of %s: %w", kind.Resource, err)
	}
	var out strings.Builder
	tab := tabwriter.NewWriter(&out, 0, 8, 3, ' ', 0)
	var head []string
	for _, column := range table.ColumnDefinitions {
		head = append(head, strings.ToUpper(column.Name))
	}
	fmt.Fprintln(tab, strings.Join(head, "\t"))
	for _, row := range table.Rows {
		var cells []string
		for _, cell := range row.Cells {
			if cell == nil {
				cell = ""
			}
			cells = append(cells, fmt.Sprint(cell))
		}
		fmt.Fprintln(tab, strings.Join(cells, "\t"))
	}
	if err := tab.Flush(); err != nil {
		return "", err
	}
	return out.String(), nil
}

// Audit reads all that is in the audit stream, oldest first. A message that is
// no event is an error.
func (w *World) Audit(ctx context.Context) ([]bus.AuditEvent, error) {
	conn, err := bus.Connect(ctx, w.NATSConfig("auditor"), "auditor", slog.New(slog.DiscardHandler), bus.WithDialer(w.NATSDialer()))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := Until(ctx, "NATS", func(context.Context) (bool, error) { return conn.Connected(), nil }); err != nil {
		return nil, err
	}
	var events []bus.AuditEvent
	err = bus.ReadAudit(ctx, conn, bus.AuditFilter{}, func(e bus.AuditEvent) error {
		if e.Err != nil {
			return fmt.Errorf("message %d on %s is no event: %w", e.NatsSequence, e.NatsSubject, e.Err)
		}
		events = append(events, e)
		return nil
	})
	return events, err
}

// Shorten cuts a text at n characters, and shows that it did.
func Shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
