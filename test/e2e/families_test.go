// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/lab/namespace"
	"egress-gateway.io/test/scenario"
)

// A pool may have one family only, in a cluster whose pods have both. The
// other family is told of, and what of it comes to the gateway is refused.
func TestPoolsOfOneFamily(t *testing.T) {
	w := newWorld(t, dualStack, nodesLeadToGateway)
	dual := scenario.DualPool()
	w.must(w.CreatePool(w.ctx, scenario.Pool{Name: "four", EgressRanges: dual.EgressRanges[:1], GatewayRanges: dual.GatewayRanges[:1]}))
	w.must(w.CreatePool(w.ctx, scenario.Pool{Name: "six", EgressRanges: dual.EgressRanges[1:], GatewayRanges: dual.GatewayRanges[1:]}))

	t.Run("IPv4 only", func(t *testing.T) {
		four := w.tenant("ns-four", "four")
		w.saysWithout(four, "AllocatedWithoutIPv6", "IPv6")
		p := w.pod("node1", "ns-four")
		w.seenAs(p, four)
		w.refusedAt(p, lab.ServerURL6)
		if out, err := w.RunInGateway("ip", "-6", "-o", "address", "show", "dev", "eg001"); err != nil || out != "" {
			t.Errorf("the link of an IPv4 tenant has IPv6 addresses: %s (error %v)", out, err)
		}
	})
	t.Run("IPv6 only", func(t *testing.T) {
		six := w.tenant("ns-six", "six")
		w.saysWithout(six, "AllocatedWithoutIPv4", "IPv4")
		for _, node := range w.Nodes() {
			p := w.pod(node, "ns-six")
			w.seenAs(p, six)
			w.refusedAt(p, lab.ServerURL)
		}
		p := w.pod("node1", "ns-six")
		w.seenAs(p, six)
		w.unharmed("UDP of an IPv6 tenant", w.udp6(p), six)
		w.must(w.Unlabel(w.ctx, "ns-six"))
		w.must(w.WaitGone(w.ctx, "ns-six", soon))
		w.gone(six.EgressIP6().String(), six.GatewayIP6().String(), "lab/ns-six")
		w.unseen6(p)
	})
	t.Run("link-local next hops are refused by name", func(t *testing.T) {
		w.must(w.CreatePool(w.ctx, scenario.Pool{Name: "linklocal", EgressRanges: []string{"2001:db8:55::200-2001:db8:55::201"}, GatewayRanges: []string{"fe80::13-fe80::20"}}))
		w.ask("ns-linklocal", "linklocal", "")
		w.refused("ns-linklocal", "InvalidRange", "link-local")
		w.ask("ns-asks-linklocal", "six", "fe80::99")
		w.refused("ns-asks-linklocal", "InvalidAnnotation", "fe80::99 is link-local")
	})
}

// saysWithout fails the test unless the tenant's owner can read that a family
// is not served.
func (w *world) saysWithout(t scenario.Tenant, reason, family string) {
	w.t.Helper()
	if c := t.Condition("Allocated"); c.Reason != reason || !strings.Contains(c.Message, "the "+family+" traffic of its pods") {
		w.t.Errorf("Allocated has reason %q, message %q; want %s", c.Reason, c.Message, reason)
	}
	if c := t.Condition("Ready"); !strings.Contains(c.Message, family+" traffic does not") {
		w.t.Errorf("Ready says %q, and nothing of %s", c.Message, family)
	}
}

// refusedAt fails the test unless a connection of the pod is refused at once,
// as the guard refuses what a node's default route brings to the gateway.
func (w *world) refusedAt(p *lab.Pod, url string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 3*time.Second)
	defer cancel()
	if body, err := p.HTTPGet(ctx, url); err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
		w.t.Errorf("pod %s at %s: answer %q, error %v; want it refused", p, url, body, err)
	}
}

// What IPv6 needs besides the flow itself: errors find their way back through
// the translation, and hosts of the node network are reached.
func TestIPv6ErrorsAndHairpin(t *testing.T) {
	w := newWorld(t, dualStack)
	w.must(w.CreatePool(w.ctx, scenario.DualPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	// The VM tells pods about packets that are too big for its own NIC itself.
	w.allowed[netip.MustParseAddr(lab.GatewayExternal6)] = true

	t.Run("hairpin", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
		defer cancel()
		body, err := p.HTTPGet(ctx, fmt.Sprintf("http://[%s]:%d/", lab.LANHost6, lab.HTTPPort))
		if err != nil || body != lab.GatewayInternal6 {
			t.Errorf("a host of the node network sees %q, want the VM's own %s (error %v)", body, lab.GatewayInternal6, err)
		}
	})
	t.Run("port unreachable", func(t *testing.T) {
		c, err := p.DialUDP(fmt.Sprintf("[%s]:9", lab.Server6))
		w.must(err)
		defer c.Close()
		w.until("the pod to learn that nobody listens", func() (bool, error) {
			_, err := c.Write([]byte("anybody?"))
			return errors.Is(err, syscall.ECONNREFUSED), nil
		})
	})
	t.Run("packet too big, from beyond", func(t *testing.T) {
		_, err := w.Exec(lab.PartExternal, "sh", "-c", `set -e
			ip link add far0 mtu 1300 type veth peer name far1
			echo 0 > /proc/sys/net/ipv6/conf/far0/disable_ipv6
			echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
			ip link set far0 up; ip link set far1 up
			ip address add 2001:db8:99::1/64 dev far0 nodad`)
		w.must(err)
		w.learnsMTU(p, "2001:db8:99::2", 1300)
	})
	t.Run("packet too big, from the gateway", func(t *testing.T) {
		_, err := w.RunInGateway("ip", "link", "set", "enp7s0", "mtu", "1290")
		w.must(err)
		w.learnsMTU(p, lab.Server6, 1290)
	})
}

// learnsMTU sends large packets until the pod knows that they are too large.
func (w *world) learnsMTU(p *lab.Pod, to string, mtu int) {
	w.t.Helper()
	c, err := p.DialUDP("[" + to + "]:9")
	w.must(err)
	defer c.Close()
	w.until(fmt.Sprintf("the pod to learn the MTU %d towards %s", mtu, to), func() (bool, error) {
		_, _ = c.Write(make([]byte, 1400)) // the answer to an earlier one may come back as an error
		out, err := w.Exec(p.Part, "ip", "-6", "route", "get", to, "from", p.Address6.String())
		return strings.Contains(out, fmt.Sprintf("mtu %d", mtu)), err
	})
}

// TestNothingComesInFromOutsideIPv6 is TestNothingComesInFromOutside for IPv6,
// with senders that pretend to be pods.
func TestNothingComesInFromOutsideIPv6(t *testing.T) {
	w := newWorld(t, dualStack)
	w.must(w.CreatePool(w.ctx, scenario.DualPool()))
	blue := w.tenant("ns-blue", "public")
	p := w.pod("node1", "ns-blue")
	w.seenAs(p, blue)
	w.allowed[netip.MustParseAddr(lab.GatewayExternal6)] = true

	sock, err := p.ListenUDP6(5353)
	w.must(err)
	defer sock.Close()
	_, err = w.Start(lab.PartGateway, "service", nil, "lab", "serve", "::")
	w.must(err)
	w.until("the VM's own service to answer on its own address", func() (bool, error) {
		err := w.fromOutside("tcp", "", lab.GatewayExternal6, lab.HTTPPort)
		return err == nil, err
	})
	node, _ := w.Node("node1")
	for what, target := range map[string]string{"an egress IP": blue.EgressIP6().String(), "a gateway IP": blue.GatewayIP6().String(), "a node": node.Address6.String(), "a pod": p.Address6.String()} {
		// Refused by the target itself is as bad as answered: it was reached.
		if err := w.fromOutside("tcp", "", target, lab.HTTPPort); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s (%s) is reached from outside: %v", what, target, err)
		}
	}
	const pretender = "fd01:0:0:2::dead"
	_, err = w.Exec(lab.PartExternal, "ip", "address", "add", pretender+"/128", "dev", "lo", "nodad")
	w.must(err)
	for range 5 {
		for _, source := range []string{"", pretender} {
			w.must(w.fromOutside("udp", source, p.Address6.String(), 5353))
		}
	}
	w.must(sock.SetReadDeadline(time.Now().Add(time.Second)))
	if n, from, err := sock.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes from %s reached a pod from outside", n, from)
	} else if e, ok := err.(net.Error); !ok || !e.Timeout() {
		t.Fatal(err)
	}
}

// fromOutside connects from the outside server within a second, over UDP it
// sends a packet. An empty source is the server's own.
func (w *world) fromOutside(network, source, to string, port int) error {
	return namespace.Do(w.Namespace(lab.PartExternal), func() error {
		d := net.Dialer{Timeout: time.Second}
		if source != "" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(source)}
		}
		c, err := d.DialContext(w.ctx, network, net.JoinHostPort(to, fmt.Sprint(port)))
		if err != nil {
			return err
		}
		defer c.Close()
		if network == "udp" {
			_, err = c.Write([]byte("hello"))
		}
		return err
	})
}
