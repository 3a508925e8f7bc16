// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kelseyhightower/envconfig"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

func TestConfigFromEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"URL": "nats://a:4222,tls://b:4222", "CREDS_FILE": "/creds", "NKEY_FILE": "/nkey", "USER": "u", "PASSWORD_FILE": "/pw",
		"CA_FILE": "/ca", "CERT_FILE": "/cert", "KEY_FILE": "/key", "TLS_FIRST": "true", "ALLOW_INSECURE_PLAINTEXT_FOR_LAB": "true",
	} {
		t.Setenv("GATEWAY_NATS_"+name, value)
	}
	var cfg struct{ NATS Config }
	if err := envconfig.Process("GATEWAY", &cfg); err != nil {
		t.Fatal(err)
	}
	if err := envconfig.CheckDisallowed("GATEWAY", &cfg); err != nil {
		t.Fatal(err)
	}
	c := cfg.NATS
	if len(c.URL) != 2 || c.CredsFile != "/creds" || c.NkeyFile != "/nkey" || c.User != "u" || c.PasswordFile != "/pw" ||
		c.CAFile != "/ca" || c.CertFile != "/cert" || c.KeyFile != "/key" || !c.TLSFirst || !c.AllowInsecurePlaintextForLab {
		t.Fatalf("%+v", c)
	}
}

func TestConfigValidate(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := Config{URL: []string{"tls://127.0.0.1:4222"}, NkeyFile: file}
	if err := good.Validate("P"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no url":        {func(c *Config) { c.URL = nil }, "P_URL="},
		"scheme":        {func(c *Config) { c.URL = []string{"http://x:1"} }, `P_URL="http://x:1": unknown scheme`},
		"no scheme":     {func(c *Config) { c.URL = []string{"localhost:4222"} }, "P_URL="},
		"password":      {func(c *Config) { c.URL = []string{"tls://u:hunter2@x:1"} }, `P_URL="...@x:1"`},
		"path":          {func(c *Config) { c.URL = []string{"tls://x:1/y"} }, "ends with its port"},
		"creds":         {func(c *Config) { c.CredsFile = "/no/such" }, `P_CREDS_FILE="/no/such"`},
		"user alone":    {func(c *Config) { c.User = "u" }, "P_PASSWORD_FILE"},
		"password file": {func(c *Config) { c.PasswordFile = file }, "P_PASSWORD_FILE"},
		"cert alone":    {func(c *Config) { c.CertFile = file }, "P_KEY_FILE"},
		"two":           {func(c *Config) { c.CredsFile, c.NkeyFile = file, file }, "only one of"},
		"plain":         {func(c *Config) { c.URL = []string{"tls://x:1", "nats://y:1"} }, `P_URL="nats://y:1": this connection would not be encrypted; use tls:// and P_CA_FILE`},
		"plain unless":  {func(c *Config) { c.URL = []string{"nats://y:1"} }, "set P_ALLOW_INSECURE_PLAINTEXT_FOR_LAB=true"},
		"nobody":        {func(c *Config) { c.NkeyFile = "" }, "no credentials for NATS: set P_NKEY_FILE"},
	} {
		cfg := good
		c.change(&cfg)
		err := cfg.Validate("P")
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]Config{
		"a lab":                 {URL: []string{"nats://x:1"}, AllowInsecurePlaintextForLab: true},
		"TLS asked for by a CA": {URL: []string{"nats://x:1"}, NkeyFile: file, CAFile: file},
		"a certificate only":    {URL: []string{"tls://x:1"}, CertFile: file, KeyFile: file},
	} {
		if err := c.Validate("P"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConnectBeforeTheServer(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	srv.kill()
	c := srv.dial("gw1")
	if c.Connected() {
		t.Fatal("connected to a dead server")
	}
	f := startFollower(t, c)
	w := startWriter(t, c, "c1")
	srv.start()
	eventually(t, "the connection", c.Connected)
	sees(t, f, "c1", syncNow(t, w, aState("c1", 2)).Generation)
}

func TestStateChanges(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	c := srv.connect("gw1")
	var mu sync.Mutex
	var got []bool
	c.OnStateChange(func(s StateChange) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, s.Connected)
	})
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(got)
	}
	if count() != 1 {
		t.Fatal("the present state was not told")
	}
	srv.kill()
	eventually(t, "the loss", func() bool { return count() == 2 })
	srv.start()
	eventually(t, "the connection", func() bool { return count() == 3 })
	if !got[0] || got[1] || !got[2] {
		t.Fatal(got)
	}
}

// Credentials that are refused for a while do not end the connection for good,
// and a key that is replaced in its file is used without a restart.
func TestRotatedCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	seed := func(name string) (file, public string) {
		kp := must(nkeys.CreateUser())
		file = filepath.Join(dir, name)
		if err := os.WriteFile(file, must(kp.Seed()), 0o600); err != nil {
			t.Fatal(err)
		}
		return file, must(kp.PublicKey())
	}
	file, public := seed("mine")
	replacement, other := seed("other")
	allowed := public
	srv := startServer(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: allowed}} })
	cfg := srv.config()
	cfg.NkeyFile = file
	d := &cutter{}
	c := must(Connect(t.Context(), cfg, "gw1", quiet(), WithReconnectWait(10*time.Millisecond), WithDialer(d)))
	t.Cleanup(func() { _ = c.Close() })
	eventually(t, "the connection", c.Connected)
	srv.kill()
	allowed = other
	srv.start()
	before := d.count()
	eventually(t, "refusals", func() bool { return d.count() >= before+4 })
	if c.Connected() || c.nc.IsClosed() {
		t.Fatal("connected, or closed for good")
	}
	if err := os.Rename(replacement, file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection with the new key", c.Connected)
	srv.kill()
	srv.start()
	eventually(t, "the connection", c.Connected)
}

// cutter is a dialer whose connections can be cut and made to hang.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
	n     int // connections ever made
}

func (d *cutter) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

func (d *cutter) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	if err == nil {
		d.mu.Lock()
		d.conns = append(d.conns, c)
		d.n++
		d.mu.Unlock()
	}
	return c, err
}

func (d *cutter) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		_ = c.Close()
	}
	d.conns = nil
}

// Changes during many short cuts arrive: nothing is resumed, so nothing is lost.
func TestCuts(t *testing.T) {
	t.Parallel()
	srv := startServer(t)
	d := &cutter{}
	f := startFollower(t, srv.connect("gw1", WithDialer(d)))
	w := startWriter(t, srv.connect("ca"), "c1")
	for i := range 15 {
		res := syncNow(t, w, aState("c1", 50+i))
		d.cut()
		if n := len(live(sees(t, f, "c1", res.Generation))); n != 50+i {
			t.Fatalf("%d tenants", n)
		}
	}
}

// The permissions that the documentation asks for are enough, and a gateway can
// do nothing beyond them.
func TestLeastPermissions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	user := func(name string, publish ...string) *server.User {
		return &server.User{Username: name, Password: "secret", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: publish},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_" + name + ".>"}},
		}}
	}
	srv := startServer(t, func(o *server.Options) {
		o.Users = []*server.User{user("gw1", GatewayPermissions("gw1")...), user("ca", ClusterPermissions("c1")...), user("setup", SetupPermissions()...)}
	})
	connect := func(name string) *Conn {
		cfg := srv.config()
		cfg.User, cfg.PasswordFile = name, password
		c := must(Connect(t.Context(), cfg, name, quiet()))
		t.Cleanup(func() { _ = c.Close() })
		eventually(t, "the connection of "+name, c.Connected)
		return c
	}
	ca, gw, admin := connect("ca"), connect("gw1"), connect("setup")
	for _, want := range []int{3, 0} {
		if done := must(Setup(within(t), admin, 1)); len(done) != want {
			t.Fatalf("setup did %q", done)
		}
	}
	w := startWriter(t, ca, "c1")
	sf := startStatusFollower(t, ca)
	f := NewFollower(gw, FollowerOptions{Reader: "gw1", Log: quiet()})
	run(t, f.Run)
	own := NewFollower(ca, FollowerOptions{Cluster: "c1", Log: quiet()})
	run(t, own.Run)
	sw := startStatusWriter(t, gw, "gw1")
	s := aState("c1", 600)
	syncNow(t, w, s)
	s.Tenants, s.Nodes = s.Tenants[:599], nil
	sees(t, f, "c1", syncNow(t, w, s).Generation)
	sees(t, own, "c1", f.Views()["c1"].Ready.Generation)
	if _, err := sw.Sync(within(t), report("gw1", 2, 1)); err != nil {
		t.Fatal(err)
	}
	tells(t, sf, map[string]int64{"gw1/ns-0": 1, "gw1/ns-1": 1})
	cluster, err := NewAudit(ca, AuditOptions{Role: RoleCluster, Name: "c1", Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	run(t, cluster.Run)
	emit(t, cluster, "alloc", "x")
	allPublished(t, cluster)
	a := startAudit(t, gw, "", 0)
	emit(t, a, "tenant", "y")
	allPublished(t, a)
	if n := ca.Errors() + gw.Errors() + admin.Errors(); n != 0 {
		t.Fatalf("%d permission violations", n)
	}
	if err := gw.nc.Publish("$KV.egress-state.c1.tenant.ns-0", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the violation to be counted", func() bool { return gw.Errors() == 1 })
}
