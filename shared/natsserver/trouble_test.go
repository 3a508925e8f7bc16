// SPDX-License-Identifier: Apache-2.0

package natsserver

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"egress-gateway.io/shared/natsconf"
)

// Each mistake is told with its remedy, ends nothing, and is over once it is
// mended.
func TestTrouble(t *testing.T) {
	t.Parallel()
	edit := func(v *vm, old, with string) func() {
		b := must(os.ReadFile(v.opts.ConfigFile))
		if !strings.Contains(string(b), old) {
			v.t.Fatalf("the configuration lacks %q", old)
		}
		v.write(v.opts.ConfigFile, strings.ReplaceAll(string(b), old, with))
		return func() { v.write(v.opts.ConfigFile, string(b)) }
	}
	for name, c := range map[string]struct {
		harm func(*vm) (mend func())
		want []string
	}{
		"no configuration": {func(v *vm) func() {
			b := must(os.ReadFile(v.opts.ConfigFile))
			v.must(os.Remove(v.opts.ConfigFile))
			return func() { v.write(v.opts.ConfigFile, string(b)) }
		}, []string{"nats.conf", "no such file", "egressctl init"}},
		"garbage": {func(v *vm) func() { return edit(v, "tls {", "tls }") }, []string{"nats.conf", "egressctl init"}},
		"no certificate": {func(v *vm) func() {
			cert := filepath.Join(v.path, "nats", "server.crt")
			b := must(os.ReadFile(cert))
			v.must(os.Remove(cert))
			return func() { v.write(cert, string(b)) }
		}, []string{"server.crt", "egressctl init"}},
		"certificate and key do not belong together": {func(v *vm) func() {
			key := filepath.Join(v.path, "nats", "server.key")
			b := must(os.ReadFile(key))
			v.write(key, string(must(os.ReadFile(filepath.Join(v.path, "gateways", "gw1", "client.key")))))
			return func() { v.write(key, string(b)) }
		}, []string{"nats.conf", "private key does not match", "egressctl init"}},
		"no verification": {func(v *vm) func() { return edit(v, "verify: true", "verify: false") }, []string{"certificates of both sides", "egressctl init"}},
		"no jetstream":    {func(v *vm) func() { return edit(v, "jetstream {", "nothing {") }, []string{"nats.conf"}},
		"a cluster":       {func(v *vm) func() { return edit(v, "jetstream {", "cluster { name: x }\njetstream {") }, []string{"embedded server is alone"}},
		"the port is taken": {func(v *vm) func() {
			l, err := net.Listen("tcp", strings.TrimPrefix(v.dir.Installation().URLs()[0], "tls://"))
			v.must(err)
			return func() { v.must(l.Close()) }
		}, []string{"address already in use", "another program has the address 127.0.0.1:"}},
		"the store is a file": {func(v *vm) func() {
			v.write(v.store, "")
			return func() { v.must(os.Remove(v.store)) }
		}, []string{"must be a directory that this process may write to"}},
		"the store can not be made": {func(v *vm) func() {
			v.must(os.MkdirAll(v.store, 0o700))
			v.write(filepath.Join(v.store, "jetstream"), "")
			return func() { v.must(os.Remove(filepath.Join(v.store, "jetstream"))) }
		}, []string{"look at the store below", "is there room"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVM(t)
			mend := c.harm(v)
			s, _ := v.run()
			v.eventually("the error", func() bool { return s.Err() != ErrNotRunning })
			for _, want := range c.want {
				if text := s.Err().Error(); !strings.Contains(text, want) {
					t.Errorf("%q lacks %q", text, want)
				}
			}
			if s.Running() {
				t.Error("it runs nevertheless")
			}
			mend()
			v.eventually("the server, mended", func() bool { return s.Running() && s.Err() == nil })
		})
	}
}

// A certificate that has expired is told; the agent beside it still connects,
// and once there is a new one, so does everybody.
func TestExpiredCertificate(t *testing.T) {
	t.Parallel()
	v := newVMAt(t, func() time.Time { return time.Now().AddDate(-3, 0, 0) })
	s, _ := v.up()
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "nobody outside can connect") || !strings.Contains(err.Error(), "egressctl") {
		t.Fatalf("error %v", err)
	}
	v.inside(s)
	if c := v.dial(v.config("clusters/c1"), "c1"); c.Connected() {
		t.Error("connected with an expired certificate")
	}
	d := must(natsconf.Open(v.path, time.Now))
	if _, err := d.Renew(); err != nil {
		t.Fatal(err)
	}
	v.eventually("the warning to go", func() bool { return s.Err() == nil })
	v.outside()
}

func (v *vm) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) write(path, text string) {
	v.t.Helper()
	v.must(os.WriteFile(path, []byte(text), 0o600))
}

// A stream that can not be read is put aside and begins anew: whoever makes it
// again must not write over what may still be saved. The other streams stay.
func TestDamagedStream(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	s, stop := v.up()
	v.setup(s)
	v.tell(v.inside(s), 50)
	stop()
	streams := filepath.Join(v.store, "jetstream", "EGRESS", "streams")
	v.write(filepath.Join(streams, "KV_egress-state", "meta.inf"), "garbage")

	s, stop = v.up()
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "put aside") || !strings.Contains(err.Error(), v.store) {
		t.Fatalf("error %v", err)
	}
	v.setup(s)
	if n := v.events(); n != 50 {
		t.Errorf("%d events are left of a stream that was not damaged", n)
	}
	aside, err := filepath.Glob(filepath.Join(v.store, "damaged-*", "EGRESS", "KV_egress-state", "meta.inf"))
	v.must(err)
	if len(aside) != 1 {
		t.Fatalf("put aside: %v", aside)
	}
	stop()
	v.must(os.RemoveAll(filepath.Dir(filepath.Dir(filepath.Dir(aside[0])))))
	if s, _ = v.up(); s.Err() != nil {
		t.Error(s.Err())
	}
}
