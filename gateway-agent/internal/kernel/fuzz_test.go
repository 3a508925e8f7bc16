// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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

// Whatever the kernel tells about an element of a set becomes the text that
// encodes to the very same bytes, or is told to be odd; and the agent goes on.
func FuzzElement(f *testing.F) {
	for set, raw := range map[string][]byte{
		"owners4": keyed(ownerKey()),
		"owners6": keyed(ownerKey()),
		"stale4":  keyed(ownerKey()[unix.IFNAMSIZ:], attribute(unix.NFTA_SET_ELEM_EXPR, 1)),
		"pods4":   keyed(ownerKey()[20:], attribute(unix.NFTA_SET_ELEM_FLAGS, 0, 0, 0, 1)),
		"links6":  keyed(ownerKey()[:unix.IFNAMSIZ], attribute(unix.NFTA_SET_ELEM_DATA, attribute(unix.NFTA_DATA_VALUE, 0, 0, 16, 0)...)),
	} {
		f.Add(set, raw)
		f.Add(set, raw[:len(raw)-4])
	}
	types := plan.GuardSetTypes()
	f.Fuzz(func(t *testing.T, set string, raw []byte) {
		layout, err := parseLayout(types[set])
		if types[set] == "" || err != nil {
			return
		}
		r := setReader{layout: layout, plain: true}
		r.take(raw)
		elements := r.set(0)
		if !r.plain || layout.intervals {
			return
		}
		e, ok := parseElement(raw)
		if len(elements) != 1 || !ok {
			t.Fatalf("%d elements", len(elements))
		}
		for written := range elements {
			again, err := guardElement(written)
			if err != nil || !bytes.Equal(again.Key, e.key) || !bytes.Equal(again.Val, e.value) {
				t.Errorf("%x : %x was read as %q, which is %x : %x (%v)", e.key, e.value, written, again.Key, again.Val, err)
			}
		}
	})
}

// Messages are walked through by lengths that are in them; each body that is handed
// over lies within, and what is no message is told.
func FuzzMessages(f *testing.F) {
	header := binary.NativeEndian.AppendUint32(nil, 20)
	header = append(header, 12, 10, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0)
	f.Add(append(slices.Clone(header), 2, 0, 0, 0))
	f.Add(append(slices.Clone(header), 2))
	f.Add(header[:9])
	f.Fuzz(func(t *testing.T, messages []byte) {
		read := 0
		a := answer{seq: 7, each: func(body []byte) error {
			read += unix.SizeofNlMsghdr + len(body)
			parseRule(body)
			parseSet(body)
			queueUsed(body)
			if parseLink(body); len(body) > 0 {
				parseAddr(body, nil)
			}
			return eachElement(body, func(element []byte) error { parseElement(element); return nil })
		}}
		if err := a.take(messages); read > len(messages) {
			t.Errorf("%d bytes of %d (%v)", read, len(messages), err)
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
