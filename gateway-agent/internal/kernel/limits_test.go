// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel"
)

// TestLimits raises the limits of a made-up machine, and looks at those of a
// real network namespace, which can not.
func TestLimits(t *testing.T) {
	root := t.TempDir()
	write := func(key, value string) {
		t.Helper()
		path := filepath.Join(root, key)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(key string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(root, key))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	const conntrack, buckets, neighbours = "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_buckets", "net/ipv4/neigh/default/gc_thresh"
	write(conntrack, "262144")
	write(buckets, "16384")
	write("net/netfilter/nf_conntrack_count", "3200000")
	for _, family := range []string{"ipv4", "ipv6"} {
		for key, value := range map[string]string{"1": "128", "2": "512", "3": "1024"} {
			write("net/"+family+"/neigh/default/gc_thresh"+key, value)
		}
	}
	write(neighbours+"2", "99999") // somebody set it higher
	l := newLab(t, "iptables-nft")
	k, err := kernel.New(l.host, kernel.Options{SysctlRoot: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	if low := k.RaiseLimits(4000, 500); len(low) != 1 || low[0].Key != buckets || low[0].Value != 16384 || low[0].Wants != 256000 || low[0].Err == nil {
		t.Errorf("while 3,200,000 entries would have to move to other buckets: %v", low)
	}
	if n := read(buckets); n != "16384" {
		t.Errorf("raised to %s buckets, for which all packets wait", n)
	}
	write("net/netfilter/nf_conntrack_count", "10000")
	if low := k.RaiseLimits(4000, 500); len(low) > 0 {
		t.Errorf("still low: %v", low)
	}
	if n := read(buckets); n != "256000" {
		t.Errorf("%s buckets", n)
	}
	write(buckets, "1048576") // somebody set it higher
	if k.RaiseLimits(4000, 500); read(buckets) != "1048576" {
		t.Errorf("lowered to %s buckets", read(buckets))
	}
	write("net/netfilter/nf_conntrack_count", "3200000")
	if c, n3, n2, n1 := read(conntrack), read(neighbours+"3"), read(neighbours+"2"), read(neighbours+"1"); c != "4096000" || n3 != "5096" || n2 != "99999" || n1 != "1274" {
		t.Errorf("nf_conntrack_max %s, gc_thresh3 %s, 2 %s, 1 %s", c, n3, n2, n1)
	}
	full := func(want string) {
		t.Helper()
		checks, err := k.NearlyFull()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range checks {
			got += c.Name
		}
		if got != want {
			t.Errorf("nearly full: %q, want %q", got, want)
		}
	}
	for _, family := range []string{"ipv4", "ipv6"} { // the neighbours are the machine's, with those of whoever else is at work on it
		write("net/"+family+"/neigh/default/gc_thresh3", "10000000")
	}
	full("")
	write("net/netfilter/nf_conntrack_count", "3276800")
	full("connection tracking")
	write("net/netfilter/nf_conntrack_count", "3200000")
	write(buckets, "262144")
	full("buckets of connection tracking")
	write(buckets, "1048576")
	for _, neighbour := range []string{"192.168.99.200", "fd00:99::200"} {
		l.gw.Run("ip neigh add " + neighbour + " lladdr 02:aa:00:00:00:21 dev enp1s0 nud permanent")
	}
	write("net/ipv4/neigh/default/gc_thresh3", "1")
	full("neighbours IPv4")
	write("net/ipv6/neigh/default/gc_thresh3", "1")
	full("neighbours IPv4neighbours IPv6")

	var low []kernel.Limit
	l.gw.Do(func() { low = l.kernel.RaiseLimits(4000, 500) })
	if len(low) == 0 {
		t.Error("a network namespace of its own could raise the machine's limits")
	}
	l.gw.Do(func() { low = l.kernel.RaiseLimits(100_000, 500) }) // more than this machine has buckets for
	if !slices.ContainsFunc(low, func(l kernel.Limit) bool { return l.Key == buckets }) {
		t.Errorf("a network namespace of its own could raise the machine's buckets: %v", low)
	}
	for _, limit := range low {
		if limit.Err == nil {
			t.Errorf("%+v says no reason", limit)
		}
	}
}
