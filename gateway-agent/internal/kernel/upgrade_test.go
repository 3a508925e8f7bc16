// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"egress-gateway.io/gateway-agent/internal/kernel/nettest"
	"egress-gateway.io/gateway-agent/internal/plan"
)

// mangleMarks are the rules by which versions up to November 2026 marked.
const mangleMarks = `*mangle
:EGW-M - [0:0]
:EGW-M0 - [0:0]
:EGW-M00 - [0:0]
:EGW-MARK - [0:0]
-A PREROUTING -i eg+ -j EGW-MARK
-A EGW-MARK -m conntrack --ctstatus CONFIRMED -j RETURN
-A EGW-MARK -j EGW-M
-A EGW-MARK -m mark ! --mark 0x0/0xfff00000 -j CONNMARK --save-mark --nfmask 0xfff00000 --ctmask 0xfff00000
-A EGW-M -i eg0+ -j EGW-M0
-A EGW-M0 -i eg00+ -j EGW-M00
-A EGW-M00 -i eg001 -m comment --comment "demo/ns-blue" -j MARK --set-xmark 0x100000/0xfff00000
-A EGW-M00 -i eg002 -m comment --comment "demo/ns-red" -j MARK --set-xmark 0x200000/0xfff00000
COMMIT
`

// asBefore gives the gateway the rules of a version up to November 2026.
func (l *lab) asBefore(iptables string) {
	l.load(iptables+"-restore --noflush", mangleMarks+`*nat
-D PREROUTING -i eg+ -m mark --mark 0x0/0xfff00000 -j EGW-MARK
COMMIT
*filter
:EGW-FWD - [0:0]
:EGW-OUT - [0:0]
-A EGW-FWD -i enp7s0 -j EGW-EXT
-A EGW-FWD -i eg+ -j EGW-OUT
-A EGW-FWD -s 10.128.0.0/14 -j EGW-OUT
-A EGW-FWD -o enp1s0 -m connmark ! --mark 0x0/0xfff00000 -m conntrack --ctstate SNAT --ctdir REPLY -j ACCEPT
-A EGW-OUT -o enp7s0 -m connmark ! --mark 0x0/0xfff00000 -m conntrack --ctstate SNAT -j ACCEPT
-A EGW-OUT -o enp1s0 -m connmark ! --mark 0x0/0xfff00000 -m conntrack --ctstate SNAT -j ACCEPT
-A EGW-OUT -d 10.128.0.0/14 -o enp7s0 -j DROP
-A EGW-OUT -o enp7s0 -m conntrack --ctstate NEW,RELATED -m conntrack ! --ctstatus CONFIRMED -m mark ! --mark 0x0/0xfff00000 -j ACCEPT
-A EGW-OUT -o enp1s0 -m conntrack --ctstate NEW,RELATED -m conntrack ! --ctstatus CONFIRMED -m mark ! --mark 0x0/0xfff00000 -j ACCEPT
-A EGW-OUT -m conntrack --ctstate INVALID -j DROP
-A EGW-OUT -s 10.128.0.0/14 -j EGW-REJECT
-A EGW-OUT -j DROP
COMMIT
`)
	chains := []string{"EGW-MARK", "EGW-M", "EGW-M0", "EGW-M00"}
	for _, verb := range []string{"-F", "-X"} {
		for _, c := range chains {
			l.gw.Run(iptables + " -t nat " + verb + " " + c)
		}
	}
	// The guard of then: without maps, with sets of the addresses, and watching each
	// packet in forward.
	old := regexp.MustCompile(`(?m)^.*(fast-(mark|snat)|uninvited).*\n|^add map .*\n`).ReplaceAllString(strings.Join(plan.NFTLines(plan.SetGuard{Guard: l.desired().Guard}), "\n")+"\n", "")
	l.load("nft -f -", old+"add chain inet egw-guard watch { type filter hook forward priority -10; policy accept; }\n"+
		"add rule inet egw-guard watch ct state new comment \"a new connection #ada32d\"\n"+
		"add set inet egw-guard egress4 { type ipv4_addr; elements = { 192.168.55.113, 192.168.55.114 } }\n"+
		"add rule inet egw-guard input ip daddr @egress4 counter drop comment \"egress IP IPv4 #7eecea\"\n")
}

// load feeds a program.
func (l *lab) load(program, input string) {
	file := filepath.Join(l.t.TempDir(), "input")
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.gw.Run(program + " < " + file)
}

func (l *lab) desired() plan.State {
	want, problems := plan.Desired(l.input())
	if len(problems) > 0 {
		l.t.Fatal(problems)
	}
	return want
}

// TestUpgradeUnderTraffic brings a gateway from the rules of an older version to
// today's, while connections go on and new ones begin: each is answered, and
// seen with its tenant's address.
func TestUpgradeUnderTraffic(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		iptables := strings.Split(t.Name(), "/")[1]
		l.serve(l.input())
		l.asBefore(iptables)
		expect(t, l.node1, bluePod, blue)
		long := l.dialTo(t, "udp", bluePod, server)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		asked, fresh := 0, 0
		wg.Go(func() {
			for ; ctx.Err() == nil; asked++ {
				if got, err := nettest.Ask(long); got != blue {
					t.Errorf("packet %d of a connection: the server saw %q, %v", asked, got, err)
				}
			}
		})
		wg.Go(func() {
			for ; ctx.Err() == nil; fresh++ {
				if got := l.node1.Seen("udp", bluePod, server); got != blue {
					t.Errorf("new connection %d: the server saw %q", fresh, got)
				}
			}
		})
		nettest.Wait(t, "traffic", func() bool { return len(l.wire.Sources()) > 0 })
		steps := l.serve(l.input())
		cancel()
		wg.Wait()
		if len(steps) == 0 || asked == 0 || fresh == 0 {
			t.Errorf("%d steps during %d packets and %d new connections", len(steps), asked, fresh)
		}
		t.Logf("%d steps during %d packets and %d new connections", len(steps), asked, fresh)
		if left := l.gw.Run(iptables + "-save -t mangle | grep EGW || true"); left != "" {
			t.Errorf("left in mangle:\n%s", left)
		}
		l.clean(blue, red)
	})
}
