// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// openAudit returns an Audit whose Run is not started.
func openAudit(t testing.TB, conn *Conn, dir string, maxBytes int64) *Audit {
	t.Helper()
	a, err := NewAudit(conn, AuditOptions{Dir: dir, Role: RoleGateway, Name: "gw1", MaxBytes: maxBytes, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func startAudit(t testing.TB, conn *Conn, dir string, maxBytes int64) *Audit {
	t.Helper()
	a := openAudit(t, conn, dir, maxBytes)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	run(t, a.Run)
	return a
}

func emit(t testing.TB, a *Audit, kind, subject string) {
	t.Helper()
	if err := a.Emit(Event{Cluster: "c1", Kind: kind, Subject: subject, Data: map[string]string{"k": "v"}}); err != nil {
		t.Fatal(err)
	}
}

// stored returns what the stream holds.
func stored(t testing.TB, conn *Conn, filter AuditFilter) []AuditEvent {
	t.Helper()
	var out []AuditEvent
	err := ReadAudit(within(t), conn, filter, func(e AuditEvent) error {
		if e.Err != nil {
			t.Error(e.Err)
		}
		out = append(out, e)
		return nil
	})
	if err != nil && !errors.Is(err, ErrNoAudit) {
		t.Fatal(err)
	}
	return out
}

func allPublished(t testing.TB, a *Audit) {
	t.Helper()
	eventually(t, "all events to be published", func() bool { return a.Pending() == 0 && a.spool.takeDropped() == 0 })
}

func TestAudit(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	a := startAudit(t, conn, t.TempDir(), 0)
	emit(t, a, "tenant", "tenant/ns-0")
	for range 3 { // the same thing told again
		if err := a.Emit(Event{Cluster: "c1", Kind: "alloc", ID: "alloc/uid-1/1", Data: 7}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Emit(Event{Kind: "connect"}); err != nil {
		t.Fatal(err)
	}
	allPublished(t, a)
	got := slices.DeleteFunc(stored(t, conn, AuditFilter{}), func(e AuditEvent) bool { return e.Kind == KindRepeated })
	if len(got) != 3 {
		t.Fatalf("%d events: %+v", len(got), got)
	}
	e := got[0]
	if e.NatsSubject != "egress.audit.c1.gw.gw1.tenant" || e.Type != "io.egress-gateway.v1.tenant" || e.Subject != "tenant/ns-0" ||
		e.Source != "/egress-gateway/gw/gw1" || e.ID != e.Source+"/"+e.BootID+"/1" || e.Sequence != "1" || string(e.Data) != `{"k":"v"}` {
		t.Errorf("%+v", e)
	}
	if got[1].ID != "/egress-gateway/gw/gw1/alloc/uid-1/1" || got[2].NatsSubject != "egress.audit.-.gw.gw1.connect" {
		t.Errorf("%+v", got[1:])
	}
	if n := len(stored(t, conn, AuditFilter{Cluster: "c1", Kind: "alloc"})); n != 1 {
		t.Errorf("the filter chose %d events", n)
	}
	js := srv.raw()
	cfg := must(js.Stream(within(t), AuditStream)).CachedInfo().Config
	if !cfg.DenyDelete || !cfg.DenyPurge || cfg.Compression != jetstream.S2Compression || cfg.MaxBytes != auditBytes {
		t.Errorf("%+v", cfg)
	}
	raw := must(must(js.Stream(within(t), AuditStream)).GetMsg(within(t), 1))
	if raw.Header.Get("content-type") != "application/cloudevents+json" || !strings.Contains(string(raw.Data), `"specversion":"1.0"`) {
		t.Errorf("%v %s", raw.Header, raw.Data)
	}
}

// Whoever emits at the same time: the numbers rise in the order of the stream,
// and none is missing, though some events were refused.
func TestAuditNumbersFollowTheOrder(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	a := startAudit(t, conn, t.TempDir(), 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if err := a.EmitAll([]Event{{Kind: "tenant"}, {Kind: "tenant"}}); err != nil {
					t.Error(err)
				}
				if err := a.EmitAll([]Event{{Kind: "tenant"}, {Kind: "no.kind"}}); err == nil {
					t.Error("a bad event was accepted")
				}
			}
		})
	}
	wg.Wait()
	allPublished(t, a)
	for i, e := range stored(t, conn, AuditFilter{}) {
		if e.Sequence != fmt.Sprint(i+1) {
			t.Fatalf("event %d has number %s", i+1, e.Sequence)
		}
	}
}

func TestAuditRefusesBadEvents(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	a := openAudit(t, srv.connect("gw1"), "", 0)
	for name, e := range map[string]Event{
		"no kind":       {},
		"kind":          {Kind: "a.b"},
		"cluster":       {Kind: "a", Cluster: "*"},
		"id with space": {Kind: "a", ID: "a b"},
		"long id":       {Kind: "a", ID: strings.Repeat("x", 300)},
		"huge":          {Kind: "a", Data: strings.Repeat("x", maxEvent)},
		"no JSON":       {Kind: "a", Data: func() {}},
	} {
		if err := a.Emit(e); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if a.Pending() != 0 {
		t.Error("a refused event was spooled")
	}
}

// Events survive the absence of NATS and the end of the process, and come in
// their order with the IDs that they had.
func TestAuditSpool(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	dir := t.TempDir()
	conn := srv.connect("gw1")
	srv.kill()
	first := openAudit(t, conn, dir, 0)
	for i := range 10 {
		emit(t, first, "tenant", fmt.Sprint(i))
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := startAudit(t, conn, dir, 0)
	if second.Pending() != 10 {
		t.Fatalf("%d events were left", second.Pending())
	}
	for i := 10; i < 20; i++ {
		emit(t, second, "tenant", fmt.Sprint(i))
	}
	srv.start()
	allPublished(t, second)
	got := stored(t, conn, AuditFilter{})
	if len(got) != 20 {
		t.Fatalf("%d events", len(got))
	}
	for i, e := range got {
		if e.Subject != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, e.Subject)
		}
	}
	if got[0].BootID == got[19].BootID || !strings.HasSuffix(got[9].ID, "/10") || !strings.HasSuffix(got[19].ID, "/10") {
		t.Fatalf("%s %s", got[9].ID, got[19].ID)
	}
}

// A crash between the acknowledgement and the removal from the spool publishes
// again what the server has already: it is stored once.
func TestAuditPublishedTwiceIsStoredOnce(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	dir, copied := t.TempDir(), t.TempDir()
	conn := srv.connect("gw1")
	first := openAudit(t, conn, dir, 0)
	for i := range 300 { // more than one batch
		emit(t, first, "tenant", fmt.Sprint(i))
	}
	copyDir(t, dir, copied)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	allPublished(t, first)
	cancel()
	<-done
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	allPublished(t, startAudit(t, conn, copied, 0))
	if n := len(stored(t, conn, AuditFilter{})); n != 300 {
		t.Fatalf("%d events", n)
	}
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(filepath.Join(to, "x"), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	for _, f := range must(os.ReadDir(filepath.Join(to, "x"))) {
		if err := os.Rename(filepath.Join(to, "x", f.Name()), filepath.Join(to, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAuditSpoolIsBounded(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"disk", "memory"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t)
			conn := srv.connect("gw1")
			srv.kill()
			eventually(t, "the loss to be noticed", func() bool { return !conn.Connected() })
			dir := ""
			if where == "disk" {
				dir = t.TempDir()
			}
			const bound, n = 32 << 10, 500
			a := startAudit(t, conn, dir, bound)
			for i := range n {
				emit(t, a, "tenant", fmt.Sprint(i))
			}
			if dir != "" {
				if size := dirSize(t, dir); size > bound {
					t.Fatalf("the spool holds %d bytes", size)
				}
			}
			pending := a.Pending()
			if pending < 20 || pending > 200 {
				t.Fatalf("%d events are left", pending)
			}
			srv.start()
			eventually(t, "the connection", conn.Connected)
			eventually(t, "a gap event", func() bool { return len(stored(t, conn, AuditFilter{Kind: "gap"})) == 1 })
			gap := stored(t, conn, AuditFilter{Kind: "gap"})[0]
			if want := fmt.Sprintf(`{"dropped":%d}`, n-pending); string(gap.Data) != want {
				t.Fatalf("%s, want %s", gap.Data, want)
			}
			got := stored(t, conn, AuditFilter{Kind: "tenant"})
			if len(got) != pending || got[len(got)-1].Subject != fmt.Sprint(n-1) {
				t.Fatalf("%d events, the last %s", len(got), got[len(got)-1].Subject)
			}
			if a.Dropped() != uint64(n-pending) {
				t.Fatal(a.Dropped())
			}
		})
	}
}

func dirSize(t testing.TB, dir string) (n int64) {
	t.Helper()
	for _, f := range must(os.ReadDir(dir)) {
		n += must(f.Info()).Size()
	}
	return n
}

// What a crash leaves of the line being written is cut off; a damaged line is
// skipped and told as a gap.
func TestAuditDamagedSpool(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	dir := t.TempDir()
	first := openAudit(t, conn, dir, 0)
	for i := range 3 {
		emit(t, first, "tenant", fmt.Sprint(i))
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, must(os.ReadDir(dir))[0].Name())
	lines := strings.SplitAfter(string(must(os.ReadFile(path))), "\n")
	lines[1] = strings.Replace(lines[1], "tenant", "tenent", 1)
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")+lines[0][:20]), 0o600); err != nil {
		t.Fatal(err)
	}
	a := startAudit(t, conn, dir, 0)
	emit(t, a, "tenant", "3")
	allPublished(t, a)
	eventually(t, "the gap", func() bool { return len(stored(t, conn, AuditFilter{Kind: "gap"})) == 1 })
	var got []string
	for _, e := range stored(t, conn, AuditFilter{Kind: "tenant"}) {
		got = append(got, e.Subject)
	}
	if fmt.Sprint(got) != "[0 2 3]" {
		t.Fatal(got)
	}
}

func TestAuditConcurrentEmit(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	a := startAudit(t, conn, t.TempDir(), 0)
	var wg sync.WaitGroup
	for g := range 20 {
		wg.Go(func() {
			for i := range 50 {
				emit(t, a, "tenant", fmt.Sprintf("%d/%d", g, i))
			}
		})
	}
	wg.Wait()
	allPublished(t, a)
	next := map[string]int{}
	got := stored(t, conn, AuditFilter{})
	for _, e := range got {
		g, i, _ := strings.Cut(e.Subject, "/")
		if i != fmt.Sprint(next[g]) {
			t.Fatalf("%s out of order", e.Subject)
		}
		next[g]++
	}
	if len(got) != 1000 {
		t.Fatalf("%d events", len(got))
	}
}

// The stream comes and goes under a connection that holds.
func TestAuditStreamDeleted(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	a := startAudit(t, conn, t.TempDir(), 0)
	emit(t, a, "tenant", "0")
	allPublished(t, a)
	if err := srv.raw().DeleteStream(within(t), AuditStream); err != nil {
		t.Fatal(err)
	}
	emit(t, a, "tenant", "1")
	srv.setup()
	allPublished(t, a)
	if got := stored(t, conn, AuditFilter{}); len(got) != 1 || got[0].Subject != "1" {
		t.Fatal(got)
	}
}

func TestReadAuditFollow(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	conn := srv.connect("gw1")
	a := startAudit(t, conn, "", 0)
	emit(t, a, "tenant", "0")
	allPublished(t, a)
	ctx, cancel := context.WithCancel(within(t))
	n := 0
	err := ReadAudit(ctx, conn, AuditFilter{Follow: true, Since: time.Now().Add(-time.Minute)}, func(e AuditEvent) error {
		if n++; n == 3 {
			cancel()
		} else {
			emit(t, a, "tenant", fmt.Sprint(n))
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || n != 3 {
		t.Fatal(n, err)
	}
}
