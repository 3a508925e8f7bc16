// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"egress-gateway.io/shared/bus"
)

// auditOptions are those of the audit commands.
type auditOptions struct {
	connection
	filter bus.AuditFilter
	since  time.Duration
	output string
}

func (o *auditOptions) flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	o.connection.flags(f, "auditor")
	f.StringVar(&o.filter.Cluster, "cluster", "", "only events about this cluster, by `name`")
	f.StringVar(&o.filter.Name, "agent", "", "only events of this gateway or cluster-agent, by `name`")
	f.StringVar(&o.filter.Kind, "kind", "", "only events of this `kind`, such as alloc")
	f.DurationVar(&o.since, "since", 0, "only events that NATS received so long ago or later, e.g. 24h")
	f.StringVar(&o.output, "output", "text", "`format`: text or json, one event a line")
	return f
}

func runAuditList(ctx context.Context, e env, args []string) error {
	return readAudit(ctx, e, "audit list", "Prints the audit's events, oldest first.", args, false)
}

func runAuditTail(ctx context.Context, e env, args []string) error {
	return readAudit(ctx, e, "audit tail", "Prints the audit's events as they come, until interrupted.", args, true)
}

func readAudit(ctx context.Context, e env, name, intro string, args []string, follow bool) error {
	var o auditOptions
	if err := e.parse(o.flags(name), intro, args); err != nil {
		return err
	}
	if o.output != "text" && o.output != "json" {
		return usage("--output %q: want text or json", o.output)
	}
	conn, _, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	o.filter.Follow = follow
	if follow {
		o.filter.Since = e.now()
	}
	if o.since > 0 {
		o.filter.Since = e.now().Add(-o.since)
	}
	err = bus.ReadAudit(ctx, conn, o.filter, func(a bus.AuditEvent) error { return printEvent(e.out, o.output, a) })
	if follow && ctx.Err() != nil {
		return nil // interrupted, as it should be
	}
	return err
}

// printEvent writes an event as one line.
func printEvent(w io.Writer, format string, a bus.AuditEvent) error {
	if a.Err != nil {
		_, err := fmt.Fprintf(w, "message %d on %s is no event: %v\n", a.NatsSequence, a.NatsSubject, a.Err)
		return err
	}
	if format == "text" {
		return printText(w, a)
	}
	line, err := json.Marshal(struct {
		Stream  uint64          `json:"streamSequence"`
		ID      string          `json:"id"`
		Source  string          `json:"source"`
		Kind    string          `json:"kind"`
		Subject string          `json:"subject,omitempty"`
		Time    time.Time       `json:"time"`
		BootID  string          `json:"bootid,omitempty"`
		Number  string          `json:"sequence,omitempty"`
		Data    json.RawMessage `json:"data,omitempty"`
	}{a.NatsSequence, a.ID, a.Source, a.Kind, a.Subject, a.Time, a.BootID, a.Sequence, a.Data})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", line)
	return err
}

func runAuditVerify(ctx context.Context, e env, args []string) error {
	var c connection
	f := flag.NewFlagSet("audit verify", flag.ContinueOnError)
	c.flags(f, "auditor")
	err := e.parse(f, `Reads the whole audit and looks for what should not be there, and for what is missing.
Exits with 1 if it finds something.`, args)
	if err != nil {
		return err
	}
	conn, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	v := newVerifier()
	if err := bus.ReadAudit(ctx, conn, bus.AuditFilter{}, func(a bus.AuditEvent) error { v.see(a); return nil }); err != nil {
		return err
	}
	findings := v.findings()
	for _, line := range findings {
		fmt.Fprintln(e.out, line)
	}
	fmt.Fprintf(e.out, "%d events of %d processes.\n", v.events, v.processes())
	if len(findings) > 0 {
		return errors.New("the audit is not whole")
	}
	return nil
}
