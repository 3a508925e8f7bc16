// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"net"
	"net/netip"
)

// flows is how many established flows there are, spread over the tenants.
const flows = 4096

// pair is the gateway under test, and the plain one.
type pair [2]gateway

// toGateway addresses a frame to tenant i's gateway IP.
func (g gateway) frameTo(i int) net.HardwareAddr { return mac(g.gatewayIP(i)) }

// ends are the sockets of the node and of the host outside.
type ends struct {
	nodeWire, farWire *wire
	nodeSink, farSink *sink
	nodeMAC, farMAC   net.HardwareAddr
}

func (t *topology) open() (e ends, err error) {
	var errs [4]error
	e.nodeWire, errs[0] = openWire(t.node, "eth0")
	e.farWire, errs[1] = openWire(t.far, "eth0")
	e.nodeSink, errs[2] = openSink(t.node, t.family, podPort)
	e.farSink, errs[3] = openSink(t.far, t.family, farPort)
	e.nodeMAC, e.farMAC = mac(addressIn(t.family, nodeAddress)), mac(addressIn(t.family, farAddress))
	if err := errors.Join(errs[:]...); err != nil {
		return e, errors.Join(err, e.close())
	}
	return e, nil
}

func (e ends) close() error {
	var errs []error
	for _, w := range []*wire{e.nodeWire, e.farWire} {
		if w != nil {
			errs = append(errs, w.close())
		}
	}
	for _, s := range []*sink{e.nodeSink, e.farSink} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}

// established sends packets of flows that exist, both ways in turn.
type established struct {
	ends
	pair    pair
	tenants int
	next    [2]int
}

func (l *established) step(g int) (float64, error) {
	gw := l.pair[g]
	for i := range burst {
		f := (l.next[g] + i) % flows
		there := netip.AddrPortFrom(gw.destination(f), farPort)
		l.nodeWire.udp(i, gw.frameTo(f%l.tenants), l.nodeMAC, netip.AddrPortFrom(gw.pod(f), podPort), there)
		back := gw.pod(f)
		if gw.name != plain {
			back = gw.egressIP(f % l.tenants)
		}
		l.farWire.udp(i, mac(gw.external()), l.farMAC, there, netip.AddrPortFrom(back, podPort))
	}
	l.next[g] += burst
	if err := l.nodeWire.send(); err != nil {
		return 0, err
	}
	out, err := l.farSink.drain()
	if err != nil {
		return 0, err
	}
	if err := l.farWire.send(); err != nil {
		return 0, err
	}
	in, err := l.nodeSink.drain()
	return float64(out + in), err
}

// establish makes the flows; a packet back confirms each.
func (l *established) establish() error {
	for g := range l.pair {
		for range 2 * flows / burst {
			if _, err := l.step(g); err != nil {
				return err
			}
		}
	}
	return nil
}

// newUDP sends packets that each begin a flow. A pod belongs to one tenant, and
// a tuple of a port and a destination is used once, by whatever pod: so no
// source port has to be changed, which is another measurement.
type newUDP struct {
	ends
	pair    pair
	tenants int
	next    int
}

func (l *newUDP) step(g int) (float64, error) {
	const ports = 60000
	gw := l.pair[g]
	for i := range burst {
		k := l.next + i
		p := k % flows
		from := netip.AddrPortFrom(gw.pod(p), uint16(1024+k%ports))
		l.nodeWire.udp(i, gw.frameTo(p%l.tenants), l.nodeMAC, from, netip.AddrPortFrom(gw.destination(k/ports), farPort))
	}
	l.next += burst
	if err := l.nodeWire.send(); err != nil {
		return 0, err
	}
	n, err := l.farSink.drain()
	return float64(n), err
}
