// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// sh runs a shell line on the gateway VM.
func (w *world) sh(line string) string {
	w.t.Helper()
	out, err := w.RunInGateway("sh", "-ec", line)
	if err != nil {
		w.t.Fatalf("%s: %v: %s", line, err, out)
	}
	return out
}

// quickResync makes the agent look at the kernel every second, not every 30.
var quickResync = map[string]string{"GATEWAY_RESYNC": "1s"}

// Whoever restarts the nftables service empties all there is, guards included.
// That is seen long before the next comparison.
func TestFlushedRulesetComesBackSoon(t *testing.T) {
	w := bareWorld(t)
	_, err := w.StartClusterAgent("cluster-agent", nil)
	w.must(err)
	_, err = w.StartGatewayAgent(w.ctx, nil)
	w.must(err)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	complete := w.sh(snapshot)
	for range 3 {
		began := time.Now()
		w.sh("nft flush ruleset")
		w.until("the rules to be as before", func() (bool, error) {
			if d := difference(complete, w.sh(snapshot)); d != "" { // whatever the order of the tables
				return false, errors.New(d)
			}
			return true, nil
		})
		if d := time.Since(began); d > 15*time.Second { // a comparison comes every 30
			t.Errorf("they were back after %s", d)
		} else {
			t.Logf("back after %s", d.Round(time.Millisecond))
		}
		w.seenAs(p, blue)
	}
}

// What another hand deletes comes back; what belongs to others stays.
func TestHandDeletedComesBackAndForeignSurvives(t *testing.T) {
	w := bareWorld(t)
	_, err := w.StartClusterAgent("cluster-agent", nil)
	w.must(err)
	w.sh("iptables -A FORWARD -s 198.51.100.0/24 -j ACCEPT -m comment --comment theirs && iptables -t nat -A POSTROUTING -s 198.51.100.0/24 -j MASQUERADE -m comment --comment theirs" +
		" && ip route add 198.51.100.0/24 via 192.168.99.50 && ip addr add 192.168.55.77/32 dev enp7s0 && ip link add veth0 type veth peer name veth1" +
		" && nft add table inet theirs && nft add chain inet theirs c")
	_, err = w.StartGatewayAgent(w.ctx, quickResync)
	w.must(err)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)

	complete := w.sh(snapshot)
	link := strings.TrimSpace(w.sh("ip -o link show type macvlan | sed -n 's/^[0-9]*: \\([^@]*\\)@.*/\\1/p'"))
	for _, damage := range []string{
		"ip link delete " + link,
		"ip addr del " + blue.EgressIP().String() + "/32 dev enp7s0",
		"ip addr del " + blue.GatewayIP().String() + "/32 dev " + link,
		"ip route flush proto 97",
		"iptables -t nat -F EGW-SNAT",
		"iptables -D FORWARD -j EGW-FWD",
		"iptables -t nat -F EGW-M",
		"nft flush map inet egw-guard links4",
		"nft flush map inet egw-guard translate4",
		"iptables -I FORWARD -j ACCEPT",
		"nft delete table inet egw-guard",
		"sysctl -qw net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.all.arp_announce=0 net.ipv4.ip_forward=0",
		"ip link set " + link + " down",
	} {
		t.Run(damage, func(t *testing.T) {
			w := *w
			w.t = t
			w.sh(damage)
			heal := strings.Contains(damage, "-I FORWARD")
			w.until("the kernel to be as before", func() (bool, error) {
				now := w.sh(snapshot)
				if heal { // a foreign rule that was put ahead of ours stays, behind ours
					now = strings.Replace(now, "-A FORWARD -j ACCEPT\n", "", 1)
				}
				if now != complete {
					return false, fmt.Errorf("differs:\n%s", difference(complete, now))
				}
				return true, nil
			})
			w.seenAs(p, blue)
			if heal {
				w.sh("iptables -D FORWARD -j ACCEPT")
			}
		})
	}
	for _, theirs := range []string{"iptables -C FORWARD -s 198.51.100.0/24 -j ACCEPT -m comment --comment theirs", "iptables -t nat -C POSTROUTING -s 198.51.100.0/24 -j MASQUERADE -m comment --comment theirs",
		"ip route show 198.51.100.0/24 | grep 192.168.99.50", "ip addr show dev enp7s0 | grep 192.168.55.77/32", "ip link show veth0", "nft list table inet theirs"} {
		w.sh(theirs)
	}
}

// snapshot prints all that the agent is responsible for, without counters.
const snapshot = `iptables-save | grep -v '^#' | sed 's/\[[0-9:]*\]//'; nft list table inet egw-guard 2>&1 | sed 's/packets [0-9]* bytes [0-9]*//';
ip -o -d link show type macvlan | sed 's/^[0-9]*: //; s/ *numtxqueues.*//; s/qlen [0-9]*//; s/@[^:]*//' | grep -o 'eg[^:]*:.*state [A-Z]*\|link/ether [^ ]*\|macvlan mode [a-z]*\|alias .*' || true;
ip -o -4 addr | sed 's/^[0-9]*: //; s/ *valid_lft.*//' | sort; ip route show proto 97 | sort;
sysctl net.ipv4.ip_forward net.ipv4.conf.all.arp_ignore net.ipv4.conf.all.arp_announce net.ipv4.conf.all.rp_filter`

func difference(a, b string) string {
	has := func(text, line string) bool { return strings.Contains("\n"+text, "\n"+line) }
	var out strings.Builder
	for line := range strings.Lines(a) {
		if !has(b, line) {
			out.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(b) {
		if !has(a, line) {
			out.WriteString("+ " + line)
		}
	}
	return out.String()
}

// A pass that finds everything right writes nothing: no link, address, route
// or rule changes, and no ruleset generation passes.
func TestAPassThatFindsNothingWritesNothing(t *testing.T) {
	w := bareWorld(t)
	_, err := w.StartClusterAgent("cluster-agent", nil)
	w.must(err)
	_, err = w.StartGatewayAgent(w.ctx, map[string]string{"GATEWAY_RESYNC": "200ms"})
	w.must(err)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	w.seenAs(w.pod("node1", "ns-blue"), blue)

	rules, err := w.Start(lab.PartGateway, "nft-monitor", nil, "nft", "monitor")
	w.must(err)
	links, err := w.Start(lab.PartGateway, "ip-monitor", nil, "ip", "monitor", "link", "address", "route")
	w.must(err)
	w.until("the monitors to listen", func() (bool, error) {
		w.sh("ip route add blackhole 198.51.100.0/24; ip route del blackhole 198.51.100.0/24; nft add table inet probe; nft delete table inet probe")
		a, err := os.ReadFile(rules.LogPath)
		if err != nil {
			return false, err
		}
		b, err := os.ReadFile(links.LogPath)
		return strings.Contains(string(a), "probe") && strings.Contains(string(b), "198.51.100.0/24"), err
	})
	w.pause(2 * time.Second) // ten passes
	for _, p := range []*lab.Process{rules, links} {
		b, err := os.ReadFile(p.LogPath)
		w.must(err)
		for line := range strings.Lines(string(b)) {
			if !strings.Contains(line, "probe") && !strings.Contains(line, "198.51.100.0/24") && !strings.HasPrefix(line, "# new generation") {
				t.Errorf("a pass wrote: %s", line)
			}
		}
		// Each line of the probe is a generation of its own; the monitor may
		// have begun to listen between the probe's first and its last.
		n, own := strings.Count(string(b), "# new generation"), strings.Count(string(b), "table inet probe")
		if n > own {
			t.Errorf("%d generations of rules, and only %d are the test's own", n, own)
		}
	}
}

// SIGTERM leaves the data path; a new agent adopts it; cleanup removes all
// that is ours and nothing else.
func TestStopStatusAndCleanup(t *testing.T) {
	w := bareWorld(t, dualStack)
	_, err := w.StartClusterAgent("cluster-agent", nil)
	w.must(err)
	before := w.sh(ownership)
	agent, err := w.StartGatewayAgent(w.ctx, nil)
	w.must(err)
	w.must(w.CreatePool(w.ctx, scenario.DualPool()))
	blue, red := w.tenant("ns-blue", "public"), w.tenant("ns-red", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	flow, conn := w.udp(p), w.tcp(p)

	t.Run("status", func(t *testing.T) {
		out, err := w.GatewayCommand("status")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"ns-blue", "ns-red", blue.EgressIP().String(), red.GatewayIP().String(), "10.128.0.0/23", "192.168.99.21", "rules by iptables 1.",
			blue.EgressIP6().String(), red.GatewayIP6().String(), "fd01:0:0:1::/64", "fd00:99::21"} {
			if !strings.Contains(out, want) {
				t.Errorf("status does not tell %s:\n%s", want, out)
			}
		}
		out, err = w.GatewayCommand("status", "--output", "json")
		if err != nil || !json.Valid([]byte(out)) || !strings.Contains(out, blue.EgressIP().String()) {
			t.Errorf("status --output json: %v:\n%s", err, out)
		}
	})
	t.Run("cleanup refuses while the agent runs", func(t *testing.T) {
		if out, err := w.GatewayCommand("cleanup"); err == nil {
			t.Errorf("cleanup ran beside the agent:\n%s", out)
		}
	})
	t.Run("SIGTERM", func(t *testing.T) {
		if err := agent.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := agent.Wait(); err != nil {
			t.Errorf("the agent ended with %v, want exit code 0", err)
		}
	})
	w.answers(flow, 50)
	w.seenAs(p, blue) // without an agent
	if _, err := w.StartGatewayAgent(w.ctx, nil); err != nil {
		t.Fatal(err)
	}
	w.served("ns-green")
	w.unharmed("UDP through stop and start", flow, blue)
	w.unharmed("TCP through stop and start", conn, blue)

	t.Run("cleanup", func(t *testing.T) {
		if err := w.Process(lab.GatewayAgentName).Kill(); err != nil {
			t.Fatal(err)
		}
		if out, err := w.GatewayCommand("cleanup"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if after := w.sh(ownership); after != before {
			t.Errorf("cleanup left or took too much:\n%s", difference(before, after))
		}
	})
}

// ownership prints what an agent may add to a VM.
const ownership = `iptables-save | grep '^-A' | sort; ip6tables-save | grep '^-A' | sort; nft list tables | grep -v 'ip6\? ' | sort; ip -o link show | sed 's/^[0-9]*: //; s/:.*//; s/@.*//' | sort; ip -o -4 addr | sed 's/^[0-9]*: //; s/ *valid_lft.*//' | sort; ip -o -6 addr show scope global | sed 's/^[0-9]*: //; s/ *valid_lft.*//' | sort; ip route | sort; ip -6 route | sort`

// OVN sends a tenant's traffic to hosts of the node network to the gateway
// too: it goes back out of the internal NIC, with the VM's internal address.
func TestHairpin(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	w.until("a host of the node network to answer", func() (bool, error) {
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		body, err := p.HTTPGet(ctx, fmt.Sprintf("http://%s:%d/", lab.LANHost, lab.HTTPPort))
		if err == nil && body != lab.GatewayInternal {
			t.Errorf("seen as %s by a host of the node network, want the VM's own %s", body, lab.GatewayInternal)
		}
		return err == nil, err
	})
}

// Nothing outside reaches a pod, a gateway IP, or a service of the VM on an
// egress IP.
func TestNothingComesInFromOutside(t *testing.T) {
	w := newWorld(t)
	w.must(w.CreatePool(w.ctx, scenario.DemoPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)

	// The VM answers for itself on its own address: that is not the tenants' affair.
	w.allowed[netip.MustParseAddr(lab.GatewayExternal)] = true

	sock, err := p.ListenUDP(5353)
	w.must(err)
	defer sock.Close()
	_, err = w.Start(lab.PartGateway, "service", nil, "lab", "serve", "0.0.0.0")
	w.must(err)
	w.until("the VM's own service to answer on its own address", func() (bool, error) {
		_, err := w.Exec(lab.PartExternal, "curl", "-sf", "-m", "1", "http://"+lab.GatewayExternal+":8080/")
		return err == nil, nil
	})
	for _, target := range []string{blue.EgressIP().String(), blue.GatewayIP().String()} {
		if out, err := w.Exec(lab.PartExternal, "curl", "-sf", "-m", "2", "http://"+target+":8080/"); err == nil {
			t.Errorf("the VM's service answers outside on %s: %s", target, out)
		}
	}
	if out, err := w.Exec(lab.PartExternal, "sh", "-c", "for i in 1 2 3 4 5; do echo hello | timeout 1 bash -c 'cat >/dev/udp/"+p.Address.String()+"/5353'; done"); err != nil {
		t.Fatal(err, out)
	}
	w.must(sock.SetReadDeadline(time.Now().Add(time.Second)))
	if n, from, err := sock.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes from %s reached a pod from outside", n, from)
	} else if e, ok := err.(net.Error); !ok || !e.Timeout() {
		t.Fatal(err)
	}
}
