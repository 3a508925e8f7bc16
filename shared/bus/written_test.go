// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/shared/tenant"
)

// TestViewsByWhatWasWritten has records come, change, go and turn to garbage at
// random, sessions begin anew and batches stay open. Each view equals one that is
// made of all records, and differs from the one that it names only in the
// tenants that it names.
func TestViewsByWhatWasWritten(t *testing.T) {
	equal := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty(), cmpopts.EquateErrors()}
	r := rand.New(rand.NewPCG(1, 1))
	f := NewFollower(nil, FollowerOptions{Log: quiet()})
	bucket, seen, byParts := map[string][]byte{}, map[uint64]View{}, 0
	f.loaded()
	generation, garbage := int64(0), ""
	write := func(key string, value []byte) entry {
		if value == nil {
			delete(bucket, key)
			return entry{key: key, gone: true}
		}
		bucket[key] = value
		return entry{key: key, value: value}
	}
	for round := range 300 {
		var batch []entry
		if garbage != "" && r.IntN(3) == 0 {
			batch, garbage = append(batch, write(garbage, nil)), ""
		}
		for range 1 + r.IntN(4) {
			i := r.IntN(30)
			if r.IntN(50) == 0 {
				i = 30 + r.IntN(100)
			}
			key := tenant.TenantKey("c1", fmt.Sprintf("ns-%d", i)).String()
			switch r.IntN(60) {
			case 0:
				batch, garbage = append(batch, write(key, []byte("garbage"))), key
			case 1:
				n := aState("c1", 0).Nodes[0]
				n.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 99, byte(r.IntN(200))})}
				batch = append(batch, write(tenant.NodeKey("c1", n.Name).String(), tenant.Encode(n)))
			case 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12:
				batch = append(batch, write(key, nil))
			default:
				batch = append(batch, write(key, tenant.Encode(aTenant("c1", i, int64(round+1)))))
			}
		}
		if r.IntN(100) == 0 {
			for i := range maxWritten + 5 {
				key := tenant.TenantKey("c1", fmt.Sprintf("ns-%d", 200+i)).String()
				batch = append(batch, write(key, tenant.Encode(aTenant("c1", 200+i, int64(round+1)))))
			}
		}
		if r.IntN(20) == 0 { // a new session reads all of it
			f.begin(incarnation{})
			batch = nil
			for key, value := range bucket {
				batch = append(batch, entry{key: key, value: value})
			}
		}
		generation++
		ready := tenant.Ready{Schema: tenant.Schema, Cluster: "c1", Epoch: incarnation{}.epoch(), Generation: generation, Count: len(bucket), Hash: tenant.Digest(bucket)}
		if r.IntN(10) > 0 {
			batch = append(batch, entry{key: tenant.ReadyKey("c1").String(), value: tenant.Encode(ready)})
		}
		f.apply(batch)
		if !f.isLoaded {
			f.loaded()
		}
		v, known := f.Views()["c1"]
		if !known || v.Ready.Generation != generation {
			continue
		}
		recs := map[string]record{}
		for key, value := range bucket {
			k, err := tenant.ParseKey(key)
			if err != nil {
				t.Fatal(err)
			}
			recs[key] = decodeRecord(k, value)
		}
		before := func() map[string]record { return v.records("c1") } // what stands for garbage is tested elsewhere
		if d := cmp.Diff(newView(ready, recs, before, f.clock()), v, equal, cmpopts.IgnoreFields(View{}, "Serial", "Before", "Changed", "Problems")); d != "" {
			t.Fatalf("round %d: (-from all records +seen)\n%s", round, d)
		}
		if v.Before != 0 {
			byParts++
			was := seen[v.Before]
			if d := cmp.Diff(rest(was, v.Changed), rest(v, v.Changed), equal); d != "" {
				t.Fatalf("round %d: view %d names %v, but differs from view %d in more (-before +after)\n%s", round, v.Serial, v.Changed, v.Before, d)
			}
		}
		seen[v.Serial] = v
	}
	if byParts < 80 {
		t.Errorf("only %d views were made from the one before", byParts)
	}
}

// rest is what a view holds besides some tenants.
func rest(v View, without []string) map[string]any {
	out := map[string]any{"problems": len(v.Problems), "network": v.Network}
	for _, n := range v.Nodes {
		out["node "+n.Name] = n
	}
	for _, x := range v.Tenants {
		out[x.Name] = x
	}
	maps.DeleteFunc(out, func(name string, _ any) bool {
		for _, w := range without {
			if w == name {
				return true
			}
		}
		return false
	})
	return out
}
