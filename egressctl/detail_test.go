// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"egress-gateway.io/shared/bus"
)

func TestPrintText(t *testing.T) {
	for data, want := range map[string]string{
		`{"tenant":"blue","egressIPs":["192.0.2.1","2001:db8::1"],"generation":2,"held":true}`: "tenant=blue egressIPs=192.0.2.1,2001:db8::1 generation=2 held=true",
		`{"message":"it is \"full\"","none":"","list":[]}`:                                     `message="it is \"full\"" none="" list=`,
		`{"nested":{"a": [1]},"nothing":null}`:                                                 `nested={"a":[1]} nothing=`,
		`{"x":"\u001b[2J"}`:                                                                    `x="\x1b[2J"`,
		`[1, 2]`:                                                                               `[1,2]`,
		`null`:                                                                                 ``,
		``:                                                                                     ``,
	} {
		a := bus.AuditEvent{}
		a.Time, a.Source, a.Kind, a.Subject, a.Data = time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), "/egress-gateway/ca/prod-1", "alloc", "tenant/blue", []byte(data)
		var b strings.Builder
		if err := printText(&b, a); err != nil {
			t.Fatal(err)
		}
		if got, want := b.String(), strings.TrimSpace("2026-01-02T03:04:05.678Z ca/prod-1 alloc tenant/blue "+want)+"\n"; got != want {
			t.Errorf("%s\ngot  %swant %s", data, got, want)
		}
	}
}

func FuzzDetails(f *testing.F) {
	f.Add([]byte(`{"a":["b"],"c":{}}`))
	f.Add([]byte(`{"a":`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.ContainsAny(strings.Join(details(data), " "), "\x1b\n\r") {
			t.Errorf("%q: a control character came through", data)
		}
	})
}
