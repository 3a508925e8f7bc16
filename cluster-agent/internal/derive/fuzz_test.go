// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"encoding/json"
	"slices"
	"testing"
)

func FuzzParseRequested(f *testing.F) {
	for _, s := range []string{"", "192.0.2.1", "192.0.2.1, 2001:db8::1", "192.0.2.1,,", "::ffff:1.2.3.4", "fe80::1%eth0", "1.2.3.4,1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := parseRequested(s)
		if err != nil {
			return
		}
		sorted := slices.Compact(slices.Clone(list))
		if len(list) > maxRequested || len(sorted) != len(list) {
			t.Errorf("%q: %v", s, list)
		}
		for i := 1; i < len(list); i++ {
			if list[i-1].Is6() && list[i].Is4() {
				t.Errorf("%q: IPv6 before IPv4: %v", s, list)
			}
		}
	})
}

// FuzzParseNode feeds all annotations of a node at once: whatever comes out must
// be a record that the gateways accept.
func FuzzParseNode(f *testing.F) {
	f.Add(`{"default":["10.128.0.0/23"]}`, `{"default":{"ip-addresses":["192.168.99.21/24"]}}`, `{"ipv4":"192.168.99.21/24"}`, "192.168.99.21")
	f.Add(`{"default":"10.128.0.0/23"}`, `{"default":{"ip-address":"192.168.99.21/24","exgw-ip-addresses":null}}`, `{}`, "")
	f.Add(`{"default":[]}`, `{"default":null}`, `null`, "fe80::1%eth0")
	f.Add(`[]`, `{"default":[]}`, `"x"`, "::")
	f.Fuzz(func(t *testing.T, subnets, gateway, primary, internal string) {
		n := Node{Name: "n1", Annotations: map[string]string{annotationSubnets: subnets, annotationGateway: gateway, annotationPrimary: primary}, InternalIPs: []string{internal}}
		rec, err := parseNode("c1", n, true)
		if err != nil {
			if rec.Name != "" {
				t.Errorf("a record with an error: %+v, %v", rec, err)
			}
			return
		}
		if err := rec.Validate(); err != nil || len(rec.Subnets) == 0 || len(rec.Addresses) == 0 {
			t.Errorf("%+v: %v", rec, err)
		}
		if rec.Subnets[0].Bits() == 0 {
			t.Errorf("takes everything: %v", rec.Subnets)
		}
	})
}

func FuzzStringOrList(f *testing.F) {
	for _, s := range []string{`"a"`, `["a","b"]`, `null`, `5`, `[1]`, `{}`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := stringOrList(raw)
		if err == nil && len(list) > 0 && !json.Valid(raw) {
			t.Errorf("%q gave %q", raw, list)
		}
	})
}

// FuzzAccepted feeds status messages: only the very hops of all nodes count.
func FuzzAccepted(f *testing.F) {
	f.Add("node1: configured external gateway IPs: 192.168.99.13", "Success")
	f.Add("global: configured external gateway IPs: 192.168.99.13", "Success")
	f.Add("node1: node1 failed to apply policy: x", "Fail")
	f.Fuzz(func(t *testing.T, message, status string) {
		ok, reason, text := Accepted(Route{Messages: []string{message}, Status: status}, nil, []string{"node1"})
		if reason == "" || text == "" || ok && status != "Success" {
			t.Errorf("%q, %q: %t, %q, %q", message, status, ok, reason, text)
		}
	})
}
