// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const patience = 10 * time.Second

func TestNewLogger(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := NewLogger(&b, "json", "warn")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("quiet")
	log.Warn("loud", "tenant", "a")
	if got := b.String(); strings.Contains(got, "quiet") || !strings.Contains(got, `"msg":"loud","tenant":"a"`) {
		t.Error(got)
	}
	b.Reset()
	log, err = NewLogger(&b, "text", "debug")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("x")
	if !strings.Contains(b.String(), "level=DEBUG msg=x") {
		t.Error(b.String())
	}
	if _, err := NewLogger(&b, "xml", "info"); err == nil || !strings.Contains(err.Error(), `"xml"`) {
		t.Error(err)
	}
	if _, err := NewLogger(&b, "json", "loud"); err == nil || !strings.Contains(err.Error(), `"loud"`) {
		t.Error(err)
	}
}

func TestSignalContext(t *testing.T) {
	ctx, stop := SignalContext(t.Context())
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("the signal did not end the context")
	}
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestGroup(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		part func(context.Context) error
		want string
	}{
		"fails":  {func(context.Context) error { return boom }, "part: boom"},
		"ends":   {func(context.Context) error { return nil }, "part: ended without being asked to"},
		"panics": {func(context.Context) error { panic("ouch") }, "part: panic: ouch"},
		// Its own time limit is its own failure, not the group's end.
		"times out": {func(context.Context) error { return context.DeadlineExceeded }, "part: context deadline exceeded"},
	} {
		g, ctx := NewGroup(t.Context())
		g.Go("other", untilDone)
		g.Go("part", c.part)
		if err := g.Wait(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if ctx.Err() == nil {
			t.Errorf("%s: the context goes on", name)
		}
	}
}

func TestGroupEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	g, _ := NewGroup(ctx)
	g.Go("a", untilDone)
	g.Go("b", func(ctx context.Context) error { <-ctx.Done(); return errors.New("late") })
	cancel()
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestTrigger(t *testing.T) {
	t.Parallel()
	tr := NewTrigger()
	for range 3 {
		tr.Poke()
	}
	<-tr.C()
	select {
	case <-tr.C():
		t.Fatal("three pokes counted twice")
	default:
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	if Version() == "" {
		t.Error("no version")
	}
	setting := func(k, v string) debug.BuildSetting { return debug.BuildSetting{Key: k, Value: v} }
	const commit, date = "0123456789abcdef", "2026-11-22T01:02:03Z"
	for want, info := range map[string]*debug.BuildInfo{
		"v1.2.3 (commit unknown, date unknown)":                      {Main: debug.Module{Version: "v1.2.3"}},
		"devel (commit unknown, date unknown)":                       {Main: debug.Module{Version: "(devel)"}},
		"devel-0123456789ab (commit 0123456789abcdef, date unknown)": {Settings: []debug.BuildSetting{setting("vcs.revision", commit)}},
		"v1.2.3 (commit 0123456789abcdef, 2026-11-22T01:02:03Z)":     {Main: debug.Module{Version: "v1.2.3"}, Settings: []debug.BuildSetting{setting("vcs.revision", commit), setting("vcs.time", date)}},
		"devel-0123456789ab-dirty (commit 0123456789abcdef-dirty, 2026-11-22T01:02:03Z)": {Settings: []debug.BuildSetting{
			setting("vcs.revision", commit), setting("vcs.time", date), setting("vcs.modified", "true")}},
	} {
		if got := buildOf(info).String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "egress_test_total", Help: "x"})
	reg.MustRegister(c)
	c.Inc()
	s, err := Endpoints{
		Address: "127.0.0.1:0", Ready: func() error { return errors.New("no state yet") }, Registry: reg,
	}.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/livez": {200, "ok"}, "/healthz": {200, "ok"}, "/readyz": {503, "no state yet"}, "/metrics": {200, "egress_test_total 1"}, "/": {404, ""},
	} {
		resp, err := http.Get("http://" + s.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want.code || !strings.Contains(string(body), want.body) {
			t.Errorf("%s: %d %s %v", path, resp.StatusCode, body, err)
		}
	}
	if _, err := (Endpoints{Address: s.Addr()}).Listen(); err == nil {
		t.Error("an address in use is accepted")
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it did not end with its context")
	}
}
