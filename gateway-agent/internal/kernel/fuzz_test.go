// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// What iptables-save prints holds other programs' rules too. Whatever they look
// like, only chains with our prefix are read as ours, and only hooks that jump
// to one.
func FuzzParseSave(f *testing.F) {
	f.Add("*filter\n:FORWARD ACCEPT [0:0]\n:EGW-FWD - [0:0]\n-A FORWARD -j EGW-FWD\n-A EGW-FWD -i eg+ -j EGW-OUT\nCOMMIT\n")
	f.Add("*nat\n-A POSTROUTING -m comment --comment \"-j EGW-SNAT\" -j ACCEPT\n")
	f.Add("-A\n-A \n*\n:\n:EGW-\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := plan.State{Chains: map[plan.ChainID][]string{}, Hooks: map[plan.ChainID][]plan.Hook{}}
		if parseSave(strings.NewReader(text), tenant.IPv4, &s) != nil {
			return // a line of a megabyte
		}
		for id := range s.Chains {
			if !strings.HasPrefix(id.Name, plan.ChainPrefix) {
				t.Errorf("chain %q is not ours", id.Name)
			}
		}
		for id, hooks := range s.Hooks {
			for _, h := range hooks {
				if strings.HasPrefix(id.Name, plan.ChainPrefix) || h.Position < 1 || !strings.Contains(h.Rule, plan.ChainPrefix) {
					t.Errorf("%v is no hook: %+v", id, h)
				}
			}
		}
	})
}

// An element that is not understood must differ from any that is wanted, so
// that the set is put right; it must not end the agent.
func FuzzElement(f *testing.F) {
	for _, seed := range []string{`"192.0.2.1"`, `{"prefix":{"addr":"10.128.0.0","len":14}}`, `{"concat":["eg001",1048576,"192.0.2.1"]}`, `{"concat":[null,-1,{}]}`, `{"range":["a","b"]}`, `7`} {
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, text string, prefixes bool) {
		var plain string
		if !json.Valid([]byte(text)) || json.Unmarshal([]byte(text), &plain) == nil && plain == "" {
			return // nft prints neither
		}
		if element(json.RawMessage(text), prefixes) == "" {
			t.Errorf("%s became nothing", text)
		}
	})
}

// What the kernel holds of iptables-legacy is walked through by lengths that are in
// it; what is no such table is told, and nothing of it is read beyond its end.
func FuzzForgetCounters(f *testing.F) {
	entry := func(f tenant.Family, size int) []byte {
		at := layoutOf(f)
		b := make([]byte, size)
		binary.NativeEndian.PutUint16(b[at.next:], uint16(size))
		b[at.counters] = 7
		return b
	}
	f.Add(append(entry(tenant.IPv4, 152), entry(tenant.IPv4, 176)...), false)
	f.Add(append(entry(tenant.IPv6, 208), entry(tenant.IPv6, 400)...), true)
	f.Add(entry(tenant.IPv4, 152)[:120], false)
	f.Fuzz(func(t *testing.T, entries []byte, six bool) {
		at := layoutOf(tenant.IPv4)
		if six {
			at = layoutOf(tenant.IPv6)
		}
		before := bytes.Clone(entries)
		if !forgetCounters(entries, at) || len(entries) == 0 {
			return
		}
		if first := entries[at.counters : at.counters+counterLen]; !bytes.Equal(first, make([]byte, counterLen)) {
			t.Errorf("the first entry keeps its counters: %x", first)
		}
		if !bytes.Equal(before[:at.counters], entries[:at.counters]) || !forgetCounters(entries, at) {
			t.Error("more than counters has changed")
		}
	})
}
