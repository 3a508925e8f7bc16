// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"encoding/json"
	"testing"

	"github.com/nats-io/nats-server/v2/conf"
)

// Whatever stands in installation.json: if it is valid, each nats.conf made from
// it is one that NATS parses, with exactly its users and nobody else.
func FuzzInstallation(f *testing.F) {
	good := Installation{
		Servers: []Server{{Name: "a", Hosts: []string{"a.example", "192.0.2.1"}}, {Name: "b", Hosts: []string{"b"}}, {Name: "c", Hosts: []string{"2001:db8::3"}, Listen: "2001:db8::3"}},
		Users:   []User{{Name: "c1", Role: RoleCluster, Keys: []string{placeholderKey}}, {Name: "gw1", Role: RoleGateway, Keys: []string{placeholderKey, placeholderKey}}},
	}.withDefaults()
	f.Add(must(json.Marshal(good)))
	good.Servers = good.Servers[:1]
	good.MonitorPort = DefaultMonitorPort
	f.Add(must(json.Marshal(good)))
	f.Add([]byte(`{"version":1,"servers":[{"name":"a","hosts":["b\"}"]}],"storeDir":"/a$b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var i Installation
		if json.Unmarshal(b, &i) != nil || i.Validate() != nil {
			return
		}
		keys := 0
		for _, u := range i.Users {
			keys += len(u.Keys)
		}
		for _, s := range i.Servers {
			text, err := i.Conf(s.Name)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := conf.Parse(text)
			if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			accounts := parsed["accounts"].(map[string]any)
			users := accounts[Account].(map[string]any)["users"].([]any)
			if len(accounts) != 2 || len(users) != keys || parsed["store_dir"] != nil {
				t.Fatalf("%d accounts, %d users in\n%s", len(accounts), len(users), text)
			}
			if got := parsed["jetstream"].(map[string]any)["store_dir"]; got != i.StoreDir {
				t.Fatalf("store_dir %q, want %q", got, i.StoreDir)
			}
		}
	})
}
