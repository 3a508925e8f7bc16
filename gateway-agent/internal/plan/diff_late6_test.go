// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"testing"

	"egress-gateway.io/shared/tenant"
)

// TestIPv4DoesNotWaitForIPv6: new tenants with both families are announced over
// IPv4 before the kernel takes its time over their IPv6 addresses, and no link has
// to come up among routes to these.
func TestIPv4DoesNotWaitForIPv6(t *testing.T) {
	w, want := newWorld(), mustDesired(t, dualDemo())
	steps := Diff(want, w.state)
	first6 := slices.IndexFunc(steps, func(s Step) bool {
		a, adds := s.(AddAddr)
		return adds && a.Addr.IP.Is6()
	})
	announced := 0
	for i, s := range steps {
		switch s := s.(type) {
		case RaiseLink:
			if i > first6 {
				t.Errorf("after the first IPv6 address: %s", s)
			}
		case AddAddr:
			if s.Addr.IP.Is4() && i > first6 {
				t.Errorf("after the first IPv6 address: %s", s)
			}
		case AnnounceAddr:
			if s.IP.Is4() != (i < first6) {
				t.Errorf("step %d of %d, the first IPv6 address is step %d: %s", i, len(steps), first6, s)
			}
			announced++
		}
	}
	if first6 < 0 || announced != 8 {
		t.Errorf("%d addresses are announced, want 8; first IPv6 address: step %d", announced, first6)
	}
	drive(t, w, steps)
	settled(t, want, w)

	// What a tenant that is served already gets comes before what goes.
	in := dualDemo()
	in.Tenants[0] = numbered(1, "ns-blue", "192.168.99.13", "192.168.55.113", "fd00:99::13", "fd00:55::120")
	come, gone := -1, -1
	for i, s := range Diff(mustDesired(t, in), w.state) {
		switch s := s.(type) {
		case AddAddr:
			come = i
		case DelAddr:
			if tenant.FamilyOf(s.Addr.IP) == tenant.IPv6 {
				gone = i
			}
		}
	}
	if come < 0 || gone < come {
		t.Errorf("the new address comes in step %d, the old one goes in step %d", come, gone)
	}
}
