// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Capture counts the packets that arrive at a NIC, by source.
type Capture struct {
	mu      sync.Mutex
	sources map[netip.Addr]int
}

// Capture counts what arrives at nic until the test ends.
func (n *Net) Capture(nic string) *Capture {
	n.t.Helper()
	c := &Capture{sources: make(map[netip.Addr]int)}
	n.listen(nic, unix.ETH_P_ALL, 40, func(packet []byte, protocol uint16) {
		var src netip.Addr
		switch {
		case len(packet) >= 20 && packet[0]>>4 == 4 && protocol == unix.ETH_P_IP:
			src = netip.AddrFrom4([4]byte(packet[12:16]))
		case len(packet) >= 40 && packet[0]>>4 == 6 && protocol == unix.ETH_P_IPV6:
			src = netip.AddrFrom16([16]byte(packet[8:24]))
		default:
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sources[src]++
	})
	return c
}

// Sources returns the counts so far. Packets that were sent before the call
// are in it.
func (c *Capture) Sources() map[netip.Addr]int {
	time.Sleep(30 * time.Millisecond) // what is on the veth's queue arrives within microseconds
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[netip.Addr]int, len(c.sources))
	for a, n := range c.sources {
		out[a] = n
	}
	return out
}

// Echo answers each UDP datagram and each TCP connection on port 7 with the
// address that it came from, until the test ends.
func (n *Net) Echo(at string) {
	n.t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	var err, err2 error
	n.Do(func() {
		udp, err = net.ListenPacket("udp", at)
		tcp, err2 = net.Listen("tcp", at)
	})
	if err != nil || err2 != nil {
		n.t.Fatal(err, err2)
	}
	n.t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo([]byte(from.(*net.UDPAddr).AddrPort().Addr().Unmap().String()), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String()
				buf := make([]byte, 1)
				for { // one answer for each byte
					if _, err := c.Read(buf); err != nil {
						return
					}
					if _, err := c.Write([]byte(from + "\n")); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// Dial connects from source to an Echo. network is "udp" or "tcp".
func (n *Net) Dial(network, source, to string) (net.Conn, error) {
	d := net.Dialer{Timeout: 500 * time.Millisecond}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(source)}
	} else {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
	}
	// The dialler may resume on another thread, but makes the socket at once.
	var conn net.Conn
	var err error
	n.Do(func() { conn, err = d.Dial(network, to) })
	return conn, err
}

// Ask sends one byte and returns what Echo answers: the address that it saw.
func Ask(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(400 * time.Millisecond))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	got, err := c.Read(buf)
	for got > 0 && buf[got-1] == '\n' {
		got--
	}
	return string(buf[:got]), err
}

// Seen asks over a new connection from source.
func (n *Net) Seen(network, source, to string) string {
	c, err := n.Dial(network, source, to)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	answer, err := Ask(c)
	if err != nil {
		return err.Error()
	}
	return answer
}

// Ping fails the test unless to answers an ICMP echo request from source.
func (n *Net) Ping(source, to string) {
	n.t.Helper()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if netip.MustParseAddr(to).Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	var c net.PacketConn
	var err error
	n.Do(func() { c, err = net.ListenPacket(network, source) })
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	// Code 0, the checksum of the rest (the kernel's, for IPv6): identifier 1, number 1.
	if _, err := c.WriteTo([]byte{request, 0, 0xf7, 0xfd, 0, 1, 0, 1}, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
		n.t.Fatal(err)
	}
	buf := make([]byte, 64)
	for {
		got, from, err := c.ReadFrom(buf)
		if err != nil {
			n.t.Fatalf("ping from %s to %s: %v", source, to, err)
		}
		if got >= 8 && buf[0] == reply && from.String() == to {
			return
		}
	}
}

// Sender returns a function that puts a whole frame on the wire of nic.
func (n *Net) Sender(nic string) func(frame []byte) {
	n.t.Helper()
	var fd, index int
	var err error
	n.Do(func() {
		var link *net.Interface
		if link, err = net.InterfaceByName(nic); err == nil {
			index = link.Index
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		}
	})
	if err != nil {
		n.t.Fatalf("send on %s: %v", nic, err)
	}
	n.t.Cleanup(func() { unix.Close(fd) })
	return func(frame []byte) {
		n.t.Helper()
		if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
			n.t.Fatalf("send on %s: %v", nic, err)
		}
	}
}

// ARP is a frame with an ARP packet: operation 1 asks, 2 answers. The target's
// MAC within is all zeros.
func ARP(to, from net.HardwareAddr, op byte, sender, target netip.Addr) []byte {
	f := slices.Concat(to, from, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, op}, from, sender.AsSlice(), make([]byte, 6), target.AsSlice())
	return append(f, make([]byte, 18)...) // to the least length of a frame
}

// Broadcast is the MAC of everybody.
func Broadcast() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// Datagram is a frame with a UDP datagram without content.
func Datagram(to, from net.HardwareAddr, src, dst string) []byte {
	f := append(append(append([]byte{}, to...), from...), 8, 0)
	ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 1, 17, 0, 0}
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	ip = append(append(ip, s[:]...), d[:]...)
	sum := 0
	for i := 0; i < len(ip); i += 2 {
		sum += int(ip[i])<<8 | int(ip[i+1])
	}
	sum = ^(sum>>16 + sum&0xffff)
	ip[10], ip[11] = byte(sum>>8), byte(sum)
	return append(append(f, ip...), 0, 67, 0, 68, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}
