// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// aDir returns an installation with a cluster c1 and the gateways gw1 and gw2.
// Servers find their folders where they lie.
func aDir(t *testing.T, servers ...Server) *Dir {
	t.Helper()
	path := t.TempDir()
	d, err := Open(path, time.Now)
	if !errors.Is(err, ErrNoInstallation) {
		t.Fatal(err)
	}
	if len(servers) == 0 {
		servers = []Server{{Name: "nats", Hosts: []string{"127.0.0.1"}}}
	}
	changed, err := d.Init(Spec{
		Clusters: []string{"c1"}, Gateways: []string{"gw1", "gw2"}, Servers: servers,
		Base: Installation{MonitorPort: DefaultMonitorPort, ConfigDir: filepath.Join(path, "nats"), StoreDir: filepath.Join(path, "store"), CredentialsDir: path},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(changed) == 0 {
		t.Fatal("nothing was made")
	}
	return d
}

// content returns all files below a directory.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		out[must(filepath.Rel(dir, path))] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInitMakesEverythingOnce(t *testing.T) {
	t.Parallel()
	d := aDir(t)
	made := content(t, d.path)
	for _, name := range []string{
		"installation.json", "ca/ca.crt", "ca/ca.key", "nats/nats.conf", "nats/ca.crt", "nats/server.crt", "nats/server.key",
		"gateways/gw1/gateway.env", "gateways/gw1/client.nk", "gateways/gw2/client.crt", "gateways/gw2/client.key", "gateways/gw2/ca.crt",
		"clusters/c1/secret.yaml", "clusters/c1/cluster-agent.env", "clusters/c1/servers", "auditor/client.nk", "setup/client.nk",
	} {
		if made[name] == "" {
			t.Errorf("no %s", name)
		}
		info, err := os.Stat(d.file(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	again, err := Open(d.path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := again.Init(Spec{Clusters: []string{"c1"}, Gateways: []string{"gw1"}, Servers: again.Installation().Servers})
	if err != nil || len(changed) > 0 {
		t.Errorf("the second run changed %v, error %v", changed, err)
	}
	if now := content(t, d.path); fmt.Sprint(now) != fmt.Sprint(made) {
		t.Error("the second run changed files that it does not tell")
	}
	for name, text := range made {
		secret := strings.HasSuffix(name, ".nk") || strings.HasSuffix(name, ".key") || strings.HasSuffix(name, "secret.yaml")
		if !secret && (strings.Contains(text, "PRIVATE") || strings.Contains(text, "\nSU")) {
			t.Errorf("%s holds a secret", name)
		}
	}
}

func TestAddingAndRemovingAGateway(t *testing.T) {
	t.Parallel()
	d := aDir(t)
	before := content(t, d.path)
	changed, err := d.Init(Spec{Gateways: []string{"gw3"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"gateways/gw3/ca.crt", "gateways/gw3/client.crt", "gateways/gw3/client.key", "gateways/gw3/client.nk",
		"gateways/gw3/gateway.env", "gateways/gw3/servers", "installation.json", "nats/nats.conf",
	}
	if !slices.Equal(changed, want) {
		t.Errorf("changed %v, want %v", changed, want)
	}
	if _, err := d.Remove("gw3"); err != nil {
		t.Fatal(err)
	}
	if after := content(t, d.path); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Error("adding and removing a gateway left something")
	}
	if _, err := d.Remove("setup"); err == nil {
		t.Error("setup was removed")
	}
}

// What was moved away stays away, and all else can still be done.
func TestMovedAway(t *testing.T) {
	t.Parallel()
	d := aDir(t)
	for _, path := range []string{"gateways/gw1", "clusters/c1/client.nk"} {
		if err := os.RemoveAll(d.file(path)); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := d.Init(Spec{}); err != nil || len(changed) > 0 {
		t.Errorf("changed %v, error %v", changed, err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	good := Spec{Clusters: []string{"c1"}, Gateways: []string{"gw1"}, Servers: []Server{{Name: "nats", Hosts: []string{"nats.example"}}}}
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"no cluster":                 {func(s *Spec) { s.Clusters = nil }, "needs the name of a cluster"},
		"no server":                  {func(s *Spec) { s.Servers = nil }, "the host of a NATS server"},
		"two servers":                {func(s *Spec) { s.Servers = append(s.Servers, Server{"b", []string{"b"}, ""}) }, "2 NATS servers"},
		"a gateway named as cluster": {func(s *Spec) { s.Gateways = []string{"c1"} }, "all names must differ"},
		"a gateway named auditor":    {func(s *Spec) { s.Gateways = []string{"auditor"} }, "all names must differ"},
		"a name that is none":        {func(s *Spec) { s.Gateways = []string{"gw1.>"} }, "lower-case letters"},
		"a host that is none":        {func(s *Spec) { s.Servers = []Server{{"nats", []string{`a"b`}, ""}} }, "neither a host's name"},
		"a URL for a host":           {func(s *Spec) { s.Servers = []Server{{"nats", []string{"tls://a:4222"}, ""}} }, "neither a host's name"},
		"a path with a quote":        {func(s *Spec) { s.Base.StoreDir = `/a"b` }, "want an absolute path"},
		"a port that is none":        {func(s *Spec) { s.Base.Port = 70000 }, "want 1 to 65535"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d, _ := Open(dir, time.Now)
			spec := good
			c.change(&spec)
			if _, err := d.Init(spec); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if left := content(t, dir); len(left) > 0 {
				t.Errorf("it left %v", left)
			}
		})
	}
}

// nats-server takes what is rendered, for one server and for three.
func TestServersTakeTheConfiguration(t *testing.T) {
	t.Parallel()
	three := []Server{{"a", []string{"127.0.0.1"}, ""}, {"b", []string{"b.example", "192.0.2.2"}, ""}, {"c", []string{"2001:db8::3"}, "2001:db8::3"}}
	for _, servers := range [][]Server{three[:1], three} {
		d := aDir(t, servers...)
		for _, s := range servers {
			// Each server sees its own folder as ConfigDir.
			conf := must(os.ReadFile(d.file(d.inst.ServerDir(s.Name), confFile)))
			conf = []byte(strings.ReplaceAll(string(conf), d.inst.ConfigDir, d.file(d.inst.ServerDir(s.Name))))
			path := filepath.Join(t.TempDir(), confFile)
			if err := os.WriteFile(path, conf, 0o600); err != nil {
				t.Fatal(err)
			}
			o, err := server.ProcessConfigFile(path)
			if err != nil {
				t.Fatalf("server %s: %v", s.Name, err)
			}
			if o.TLSConfig.ClientAuth != tls.RequireAndVerifyClientCert || o.AllowNonTLS || len(o.Nkeys) != 5 || o.NoAuthUser != "" {
				t.Errorf("server %s lets somebody in: %v, %d keys", s.Name, o.TLSConfig.ClientAuth, len(o.Nkeys))
			}
			if o.HTTPHost != "127.0.0.1" || o.SyncAlways != (len(servers) == 1) || len(o.Routes) != len(servers)-1 {
				t.Errorf("server %s: monitoring at %s, sync always %v, routes %v", s.Name, o.HTTPHost, o.SyncAlways, o.Routes)
			}
		}
	}
}
