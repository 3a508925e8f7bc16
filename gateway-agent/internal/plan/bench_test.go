// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"testing"
)

// BenchmarkNothingToDo measures what it takes to find that 4,000 tenants are served
// as they should be.
func BenchmarkNothingToDo(b *testing.B) {
	in := demo()
	in.Host.OnLink, in.Tenants = prefixes("10.0.0.0/8"), nil
	for i := 1; i <= 4000; i++ {
		t := numbered(i, fmt.Sprintf("ns-%d", i))
		t.GatewayIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
		t.EgressIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})}
		in.Tenants = append(in.Tenants, t)
	}
	have, _ := Desired(in)
	have = cloneState(have)
	have.MarkMask = in.Host.MarkMask
	b.Run("Desired", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Desired(in)
		}
	})
	want, _ := Desired(in)
	b.Run("Diff", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if len(Diff(want, have)) > 0 {
				b.Fatal("something is to be done")
			}
		}
	})
	b.Run("Diff, closely", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			diff(want, have)
		}
	})
}
