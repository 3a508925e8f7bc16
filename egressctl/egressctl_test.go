// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/natsconf"
)

// ctl runs a command line and returns what it says.
func ctl(args ...string) (code int, stdout, stderr string) {
	return ctlAt(time.Now, args...)
}

func ctlAt(now func() time.Time, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs, now)
	return code, out.String(), errs.String()
}

// ok runs a command line that has to succeed.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := ctl(args...)
	if code != exitOK {
		t.Fatalf("egressctl %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func TestUsage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ok(t, "init", "--dir", dir, "--cluster", "c1", "--gateway", "gw1,gw2", "--nats-host", "nats.example")
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"", exitUsage, "Usage: egressctl"},
		{"--help", exitOK, "audit verify"},
		{"--version", exitOK, "egressctl "},
		{"frobnicate", exitUsage, `no command "frobnicate"`},
		{"audit", exitUsage, `no command "audit"`},
		{"init", exitUsage, "--dir is required"},
		{"init --help", exitOK, "-nats-host"},
		{"init --dir " + dir + " gw3", exitUsage, `unexpected argument "gw3"`},
		{"init --dir " + dir + " --rotate gw1 --retire gw1", exitUsage, "only one of"},
		{"init --dir " + dir + " --nats-host a --nats-server b=b", exitUsage, "give one of them"},
		{"init --dir " + dir + " --nats-server b", exitUsage, "want NAME=HOST"},
		{"init --dir " + dir + " --gateway Gw.1", exitError, "lower-case"},
		{"init --dir " + dir + " --rotate gw9", exitError, `no user "gw9"; there are [setup auditor c1 gw1 gw2]`},
		{"init --dir " + dir + " --port 4222", exitOK, "nothing was changed"},
		{"init --dir " + dir + " --port 4333", exitError, "--port is for a new directory, and this one has 4222"},
		{"init --dir " + dir + "/none --add-gateway gw1", exitError, "`egressctl init --dir` makes one"},
		{"init --dir " + dir + "/none", exitError, "needs the name of a cluster"},
		{"certs --help", exitOK, "-days"},
		{"certs --dir " + dir + "/none", exitError, "there is no installation"},
		{"setup --help", exitOK, "-replicas"},
		{"setup", exitUsage, "--credentials is required"},
		{"setup --credentials " + dir + "/none", exitError, "read credentials"},
		{"setup --credentials " + dir + "/setup --server tls://127.0.0.1:9 --timeout 100ms", exitError, "no connection to NATS at [tls://127.0.0.1:9] as setup within 100ms"},
		{"audit list --help", exitOK, "-kind"},
		{"audit tail --help", exitOK, "-credentials"},
		{"audit verify --help", exitOK, "Exits with 1"},
		{"audit list --output xml", exitUsage, "want text or json"},
	} {
		code, out, errs := ctl(strings.Fields(c.line)...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("egressctl %s: exit code %d, want %d and %q:\n%s%s", c.line, code, c.code, c.want, out, errs)
		}
	}
}

func TestInitTwice(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "egress")
	line := []string{"init", "--dir", dir, "--cluster", "c1", "--gateway", "gw1", "--gateway", "gw2", "--nats-host", "nats.example,192.0.2.10"}
	if out := ok(t, line...); !strings.Contains(out, "wrote gateways/gw2/gateway.env") || !strings.Contains(out, "Next: copy nats/") {
		t.Error(out)
	}
	if out := ok(t, line...); !strings.Contains(out, "is up to date; nothing was changed") {
		t.Error(out)
	}
	if out := ok(t, "init", "--dir", dir, "--add-gateway", "gw3"); !strings.Contains(out, "wrote gateways/gw3/client.nk") || strings.Contains(out, "gw2") {
		t.Error(out)
	}
	if out := ok(t, "init", "--dir", dir, "--rotate", "gw3"); !strings.Contains(out, "--retire gw3") {
		t.Error(out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "gateways/gw1/gateway.env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"GATEWAY_NAME=gw1\n", "GATEWAY_NATS_URL=tls://nats.example:4222\n", "GATEWAY_NATS_NKEY_FILE=/etc/egress-gateway/nats/client.nk\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("gateway.env lacks %q:\n%s", want, b)
		}
	}
}

func TestCertsThatExpire(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ok(t, "init", "--dir", dir, "--cluster", "c1", "--nats-host", "nats.example")
	if out := ok(t, "certs", "--dir", dir); !strings.Contains(out, "nats/server.crt") || !strings.Contains(out, "clusters/c1/client.crt") {
		t.Error(out)
	}
	later := func() time.Time { return time.Now().Add(700 * 24 * time.Hour) }
	code, out, errs := ctlAt(later, "certs", "--dir", dir)
	if code != exitError || !strings.Contains(errs, "4 of 5 certificates have expired or expire within 60 days") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	if code, out, _ := ctlAt(later, "init", "--dir", dir, "--renew"); code != exitOK || !strings.Contains(out, "wrote nats/server.crt") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, out, errs := ctlAt(later, "certs", "--dir", dir); code != exitOK {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
}

// natsServer runs a NATS server on a new directory, in this process.
func natsServer(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	ok(t, "init", "--dir", dir, "--cluster", "c1", "--gateway", "gw1", "--nats-host", "127.0.0.1", "--port", fmt.Sprint(port), "--monitor-port", "0",
		"--config-dir", dir+"/nats", "--store-dir", dir+"/store")
	o, err := server.ProcessConfigFile(dir + "/nats/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	o.NoSigs, o.NoLog = true, true
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("nats-server did not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return dir
}

// tellAs publishes events as the gateway gw1 would.
func tellAs(t *testing.T, dir string, events ...bus.Event) {
	t.Helper()
	creds, err := natsconf.ReadCredentials(dir + "/gateways/gw1")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := bus.Connect(t.Context(), creds.Config, creds.User, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a, err := bus.NewAudit(conn, bus.AuditOptions{Role: bus.RoleGateway, Name: "gw1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	if err := errors.Join(conn.WaitConnected(ctx), a.EmitAll(events)); err != nil {
		t.Fatal(err)
	}
	a.Flush(ctx, 20*time.Second)
	cancel()
	<-done
	if n := a.Pending(); n != 0 {
		t.Fatalf("%d events were not told", n)
	}
}

func TestSetupAndAudit(t *testing.T) {
	t.Parallel()
	dir := natsServer(t)
	if code, _, errs := ctl("audit", "list", "--credentials", dir+"/auditor"); code != exitError || !strings.Contains(errs, "no stream EGRESS_AUDIT; `egressctl setup` makes it") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if out := ok(t, "setup", "--credentials", dir+"/setup"); out != "bucket egress-state created\nbucket egress-status created\nstream EGRESS_AUDIT created\n" {
		t.Error(out)
	}
	if out := ok(t, "setup", "--credentials", dir+"/setup"); out != "All is there; nothing was changed.\n" {
		t.Error(out)
	}
	if code, _, errs := ctl("setup", "--credentials", dir+"/gateways/gw1", "--timeout", "1s"); code != exitError || !strings.Contains(errs, "set up bucket egress-state") {
		t.Errorf("a gateway sets NATS up: exit code %d, %s", code, errs)
	}
	tellAs(t, dir, bus.Event{Cluster: "c1", Kind: "programmed", Subject: "tenant/c1/blue", Data: 1}, bus.Event{Kind: "start"})
	if out := ok(t, "audit", "list", "--credentials", dir+"/auditor"); strings.Count(out, "\n") != 2 || !strings.Contains(out, " gw/gw1 programmed tenant/c1/blue 1\n") || !strings.Contains(out, " gw/gw1 start\n") {
		t.Error(out)
	}
	if out := ok(t, "audit", "list", "--credentials", dir+"/auditor", "--kind", "start", "--output", "json", "--since", "1h"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"kind":"start"`) {
		t.Error(out)
	}
	if out := ok(t, "audit", "verify", "--credentials", dir+"/auditor"); out != "2 events of 1 processes.\n" {
		t.Error(out)
	}
}

func TestVerifier(t *testing.T) {
	t.Parallel()
	event := func(seq uint64, number, id string) bus.AuditEvent {
		return bus.AuditEvent{NatsSequence: seq, NatsSubject: "egress.audit.c1.gw.gw1.start", Source: "/egress-gateway/gw/gw1", Kind: "start", ID: id, BootID: "b", Sequence: number}
	}
	other := event(3, "3", "c")
	other.Source = "/egress-gateway/gw/gw2"
	gap := event(3, "3", "c")
	gap.Kind, gap.NatsSubject, gap.Data = "gap", "egress.audit.-.gw.gw1.gap", []byte(`{"dropped":7}`)
	repeated := func(seq uint64, number, data string) bus.AuditEvent {
		e := event(seq, number, "r"+number)
		e.Kind, e.NatsSubject, e.Data = bus.KindRepeated, "egress.audit.-.gw.gw1.repeated", []byte(data)
		return e
	}
	const toldBefore = `{"events":[{"bootid":"b","first":2,"last":3},{"bootid":"earlier","first":9,"last":9}]}`
	for name, c := range map[string]struct {
		events []bus.AuditEvent
		want   string
	}{
		"whole, its beginning expired": {[]bus.AuditEvent{event(7, "3", "a"), event(8, "4", "b")}, ""},
		"removed":                      {[]bus.AuditEvent{event(1, "1", "a"), event(3, "2", "b")}, "removed: the stream lacks the messages 2 to 2"},
		"missing":                      {[]bus.AuditEvent{event(1, "1", "a"), event(2, "4", "b")}, "missing: 2 of the events 1 to 4"},
		"told before":                  {[]bus.AuditEvent{event(1, "1", "a"), event(2, "4", "b"), repeated(3, "5", toldBefore)}, ""},
		"told before, one not":         {[]bus.AuditEvent{event(1, "1", "a"), event(2, "5", "b"), repeated(3, "6", toldBefore)}, "missing: 1 of the events 1 to 6"},
		"told before by none":          {[]bus.AuditEvent{event(1, "1", "a"), repeated(2, "2", `{"events":[{"bootid":"b","first":1,"last":18446744073709551615}]}`)}, "forged: message 2: repeated events: more than 256 at once"},
		"doubled":                      {[]bus.AuditEvent{event(1, "1", "a"), event(2, "1", "a")}, "doubled: message 2 repeats 1 (id a)"},
		"forged":                       {[]bus.AuditEvent{event(1, "1", "a"), event(2, "2", "b"), other}, "forged: message 3: subject egress.audit.c1.gw.gw1.start, but source /egress-gateway/gw/gw2"},
		"no event":                     {[]bus.AuditEvent{{NatsSequence: 1, Err: errors.New("no CloudEvents JSON")}}, "forged: message 1: no CloudEvents JSON"},
		"without a number":             {[]bus.AuditEvent{event(1, "x", "a")}, "forged: message 1 has no number"},
		"lost":                         {[]bus.AuditEvent{event(1, "1", "a"), event(2, "2", "b"), gap}, `lost: /egress-gateway/gw/gw1 says that its spool dropped events: {"dropped":7}`},
	} {
		v := newVerifier()
		for _, e := range c.events {
			v.see(e)
		}
		found := v.findings()
		if c.want == "" && len(found) > 0 || c.want != "" && (len(found) != 1 || !strings.HasPrefix(found[0], c.want)) {
			t.Errorf("%s: %q, want %q", name, found, c.want)
		}
	}
}
