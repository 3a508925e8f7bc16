// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"crypto/tls"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"sigs.k8s.io/yaml"

	"egress-gateway.io/shared/bus"
)

const helmFile = "../../deploy/nats/helm/values.yaml"

// helmUsers are the users of the example, by the placeholders of their keys.
func helmUsers() []User {
	user := func(role Role, name string) User {
		return User{Name: name, Role: role, Keys: []string{"PUBLIC_NKEY_OF_" + name}}
	}
	return []User{user(RoleSetup, "setup"), user(RoleAuditor, "auditor"), user(RoleCluster, "prod-1"), user(RoleGateway, "gw1"), user(RoleGateway, "gw2")}
}

// helmAccounts is the block of the values that has to follow the permissions.
func helmAccounts(users []User) map[string]any {
	list := make([]any, len(users))
	for i, u := range users {
		list[i] = map[string]any{"nkey": u.Keys[0], "permissions": map[string]any{
			"publish":   map[string]any{"allow": u.permissions()},
			"subscribe": map[string]any{"allow": []string{bus.Inbox(u.Name) + ".>"}},
		}}
	}
	return map[string]any{
		"accounts":       map[string]any{"SYS": map[string]any{}, Account: map[string]any{"jetstream": "enabled", "users": list}},
		"system_account": "SYS",
	}
}

// The users of the Helm values have the rights of the generated configuration.
// UPDATE_GOLDEN=1 writes them.
func TestHelmValuesHaveTheRights(t *testing.T) {
	t.Parallel()
	const mark = "  # What follows is made by UPDATE_GOLDEN=1 go test ./shared/natsconf -run Helm\n"
	b, err := yaml.Marshal(map[string]any{"merge": helmAccounts(helmUsers())})
	if err != nil {
		t.Fatal(err)
	}
	want := mark + "  " + strings.ReplaceAll(strings.TrimSuffix(string(b), "\n"), "\n", "\n  ") + "\n"
	file := must(os.ReadFile(helmFile))
	head, have, found := strings.Cut(string(file), mark)
	if !found {
		t.Fatalf("%s lacks the line\n%s", helmFile, mark)
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(helmFile, []byte(head+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, mark+have); diff != "" {
		t.Errorf("(-want +have)\n%s", diff)
	}
}

// helmValues is what we use of the chart's values, by the chart's names.
type helmValues struct {
	Config struct {
		Cluster struct {
			Enabled  bool
			Replicas int
			TLS      helmTLS
		}
		JetStream struct {
			Enabled     bool
			FileStore   struct{ MaxSize string }
			MemoryStore struct {
				Enabled bool
				MaxSize string
			}
		}
		NATS  struct{ TLS helmTLS }
		Merge map[string]any
	}
}

type helmTLS struct {
	Enabled    bool
	SecretName string
	Merge      map[string]any
}

// What the chart makes of the values is a configuration that nats-server takes,
// lets nobody in, and has room for the streams.
func TestHelmValuesAreSecure(t *testing.T) {
	t.Parallel()
	var v helmValues
	if err := yaml.Unmarshal(must(os.ReadFile(helmFile)), &v); err != nil {
		t.Fatal(err)
	}
	c := v.Config
	if !c.Cluster.Enabled || c.Cluster.Replicas != 3 || !c.JetStream.Enabled || c.JetStream.FileStore.MaxSize != "8Gi" || !c.JetStream.MemoryStore.Enabled {
		t.Errorf("%+v", c)
	}
	d := aDir(t)
	for what, x := range map[string]helmTLS{"clients": c.NATS.TLS, "routes": c.Cluster.TLS} {
		if !x.Enabled || x.SecretName == "" || x.Merge["verify"] != true {
			t.Errorf("%s: %+v", what, x)
		}
	}
	// As files/config/tls.yaml of the chart has it; the files lie elsewhere here.
	conf := c.Merge
	conf["tls"] = map[string]any{"verify": true,
		"cert_file": d.file("nats", serverCertFile), "key_file": d.file("nats", serverKeyFile), "ca_file": d.file("nats", caFile)}
	conf["jetstream"] = map[string]any{"store_dir": t.TempDir(), "max_file_store": int64(8 << 30)}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // the chart writes > as it is, and nats-server knows no \u
	if err := enc.Encode(conf); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	keys := d.Installation().Users
	for i, u := range helmUsers() {
		text = strings.ReplaceAll(text, `"`+u.Keys[0]+`"`, `"`+keys[i].Keys[0]+`"`)
	}
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if o.TLSConfig.ClientAuth != tls.RequireAndVerifyClientCert || o.AllowNonTLS || len(o.Nkeys) != 5 || o.NoAuthUser != "" || o.SystemAccount != "SYS" {
		t.Errorf("%+v", o)
	}
	for _, u := range o.Nkeys {
		if u.Account.Name != Account || len(u.Permissions.Publish.Allow) == 0 || slices.Contains(u.Permissions.Publish.Allow, ">") {
			t.Errorf("%s: %+v", u.Nkey, u.Permissions)
		}
	}
}
