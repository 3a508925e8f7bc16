// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"egress-gateway.io/shared/bus"
)

// A key is rotated while its user tells an event every few milliseconds: none is
// lost, and none is told twice. The old key ends with Retire.
func TestRotation(t *testing.T) {
	t.Parallel()
	n := startServer(t)
	folder := t.TempDir() // of the VM
	install := func() {
		if err := os.CopyFS(folder+"/new", os.DirFS(n.d.file("gateways", "gw1"))); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{clientCertFile, clientKeyFile, seedFile, caFile, serversFile} {
			if err := os.Rename(folder+"/new/"+name, folder+"/"+name); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.RemoveAll(folder + "/new"); err != nil {
			t.Fatal(err)
		}
	}
	install()
	stolen := t.TempDir() + "/stolen"
	if err := os.CopyFS(stolen, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	creds, err := ReadCredentials(folder)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := bus.Connect(t.Context(), creds.Config, creds.User, slog.New(slog.DiscardHandler), bus.WithReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	audit, err := bus.NewAudit(conn, bus.AuditOptions{Dir: t.TempDir(), Role: bus.RoleGateway, Name: "gw1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	stopTelling := tell(t, audit, &told)

	if changed := must(n.d.Rotate("gw1")); !slices.Contains(changed, "nats/nats.conf") || !slices.Contains(changed, "gateways/gw1/client.nk") {
		t.Errorf("the rotation changed %v", changed)
	}
	if _, err := n.d.Rotate("gw1"); err == nil || !strings.Contains(err.Error(), "retire the old one") {
		t.Errorf("a second rotation: %v", err)
	}
	n.reload()
	if !conn.Connected() {
		t.Error("the reload with both keys ended the connection")
	}
	var lost atomic.Int32
	conn.OnStateChange(func(s bus.StateChange) {
		if !s.Connected {
			lost.Add(1)
		}
	})
	install()
	must(n.d.Retire("gw1"))
	n.reload()
	eventually(t, "the connection with the new key", func() bool { return lost.Load() > 0 && conn.Connected() })
	stopTelling()
	eventually(t, "all to be published", func() bool { return audit.Pending() == 0 })

	seen := 0
	if err := bus.ReadAudit(within(t), n.conn("auditor", "auditor"), bus.AuditFilter{}, func(e bus.AuditEvent) error { seen++; return e.Genuine() }); err != nil {
		t.Fatal(err)
	}
	if seen != told || told == 0 {
		t.Errorf("%d events of %d arrived", seen, told)
	}
	old, err := ReadCredentials(stolen)
	if err != nil {
		t.Fatal(err)
	}
	thief, err := bus.Connect(t.Context(), old.Config, old.User, slog.New(slog.DiscardHandler), bus.WithReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	before := n.logged("authentication error")
	eventually(t, "the old key to be refused", func() bool { return n.logged("authentication error") > before })
	if thief.Connected() {
		t.Error("the old key is still good")
	}
	if changed := must(n.d.Retire("gw1")); len(changed) > 0 {
		t.Errorf("a second retirement changed %v", changed)
	}
}

// tell publishes events until the returned function is called, and counts them.
func tell(t *testing.T, audit *bus.Audit, told *int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	publishing := make(chan error, 1)
	go func() { publishing <- audit.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-publishing; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	telling, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-telling.Done():
				return
			case <-tick.C:
			}
			if err := audit.Emit(bus.Event{Kind: "tenant", Data: *told}); err != nil {
				t.Error(err)
				return
			}
			*told++
		}
	}()
	return func() { end(); <-done }
}

// Rotate, interrupted after it wrote the new seed, takes up that seed.
func TestInterruptedRotation(t *testing.T) {
	t.Parallel()
	d := aDir(t)
	u, _ := d.inst.User("gw1")
	fresh := must(d.newSeed(u))
	must(d.Rotate("gw1"))
	u, _ = d.inst.User("gw1")
	if len(u.Keys) != 2 || u.Keys[1] != fresh {
		t.Errorf("keys %v, want the second to be %s", u.Keys, fresh)
	}
	if _, err := d.Rotate("gw9"); err == nil || !strings.Contains(err.Error(), `no user "gw9"`) {
		t.Errorf("error %v", err)
	}
}

// A gateway that is added gets in after a reload, one that is removed is thrown
// out by it; the others' connections hold.
func TestReloadAddsAndRemoves(t *testing.T) {
	t.Parallel()
	n := startServer(t)
	gw1 := n.conn("gateways/gw1", "gw1")
	steady := true
	gw1.OnStateChange(func(s bus.StateChange) { steady = steady && s.Connected })
	must(n.d.Init(Spec{Gateways: []string{"gw3"}}))
	n.reload()
	gw3 := n.conn("gateways/gw3", "gw3")
	must(n.d.Remove("gw3"))
	n.reload()
	eventually(t, "gw3 to be thrown out", func() bool { return !gw3.Connected() })
	if !gw1.Connected() || !steady {
		t.Error("gw1 lost its connection")
	}
}

// Certificates that are near their end are replaced, others are not; the server
// takes the new ones at a reload, while connections hold.
func TestRenewal(t *testing.T) {
	t.Parallel()
	age := certificateLife * 3 / 4
	n := serveWithout(t, func() time.Time { return time.Now().Add(-age) })
	gw1 := n.conn("gateways/gw1", "gw1")
	before := n.d.inst
	n.d.now = time.Now
	changed := must(n.d.Renew())
	for _, name := range []string{"nats/server.crt", "nats/server.key", "gateways/gw1/client.crt", "clusters/c1/secret.yaml", "auditor/client.key"} {
		if !slices.Contains(changed, name) {
			t.Errorf("%s was not renewed, of %v", name, changed)
		}
	}
	if slices.Contains(changed, "nats/nats.conf") || slices.Contains(changed, "gateways/gw1/client.nk") || !slices.Equal(before.URLs(), n.d.inst.URLs()) {
		t.Errorf("renewal changed %v", changed)
	}
	for _, c := range must(n.d.Certificates()) {
		if left := time.Until(c.NotAfter); left < certificateLife*9/10 {
			t.Errorf("%s expires in %s", c.Path, left)
		}
	}
	if again := must(n.d.Renew()); len(again) > 0 {
		t.Errorf("a second renewal changed %v", again)
	}
	n.reload()
	if !gw1.Connected() {
		t.Error("the reload ended a connection")
	}
	if got := servedUntil(t, n); time.Until(got) < certificateLife*9/10 {
		t.Errorf("the server shows a certificate that expires %s", got)
	}
	n.conn("gateways/gw2", "gw2")
}
