// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"egress-gateway.io/test/lab/namespace"
)

// HTTPGet fetches a page over a new connection from the pod, and returns the
// body without white space at its ends. Another status than 200 is an error.
func (p *Pod) HTTPGet(ctx context.Context, url string) (string, error) {
	body, err := get(ctx, url, p.DialTCP)
	if err != nil {
		return "", fmt.Errorf("pod %s: %w", p, err)
	}
	return body, nil
}

// HTTPGet does the same from a part of the lab: from the gateway VM to its
// agent's own page, for one.
func (l *Lab) HTTPGet(ctx context.Context, from Part, url string) (string, error) {
	body, err := get(ctx, url, func(ctx context.Context, addr string) (net.Conn, error) {
		return l.dial(ctx, from, "tcp", addr)
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", from, err)
	}
	return body, nil
}

func get(ctx context.Context, url string, dial func(ctx context.Context, addr string) (net.Conn, error)) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", url, err)
	}
	text := strings.TrimSpace(string(body))
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", url, answer.Status, text)
	}
	return text, nil
}

// own is the pod's address of the same family as addr, an "address:port".
func (p *Pod) own(addr string) (net.IP, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("pod %s: dial %s: %w", p, addr, err)
	}
	if !to.Addr().Is6() {
		return p.Address.AsSlice(), nil
	}
	if !p.Address6.IsValid() {
		return nil, fmt.Errorf("pod %s: dial %s: it has no IPv6 address", p, addr)
	}
	return p.Address6.AsSlice(), nil
}

// DialTCP connects to "address:port" from the pod's address of that family.
func (p *Pod) DialTCP(ctx context.Context, addr string) (c net.Conn, err error) {
	own, err := p.own(addr)
	if err != nil {
		return nil, err
	}
	err = namespace.Do(p.lab.Namespace(p.Part), func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: own}}
		c, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}

// DialUDP opens a connected UDP socket on the pod's address of addr's family: it learns of ICMP
// errors, and hears the peer only.
func (p *Pod) DialUDP(addr string) (c *net.UDPConn, err error) {
	own, err := p.own(addr)
	if err != nil {
		return nil, err
	}
	err = namespace.Do(p.lab.Namespace(p.Part), func() error {
		c, err = net.DialUDP("udp", &net.UDPAddr{IP: own}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		return err
	})
	return c, err
}

// ListenUDP6 is ListenUDP on the pod's IPv6 address.
func (p *Pod) ListenUDP6(port int) (c *net.UDPConn, err error) {
	err = namespace.Do(p.lab.Namespace(p.Part), func() error {
		c, err = net.ListenUDP("udp6", &net.UDPAddr{IP: p.Address6.AsSlice(), Port: port})
		return err
	})
	return c, err
}

// ListenUDP opens an unconnected UDP socket on the pod's IPv4 address; port 0
// lets the kernel choose.
func (p *Pod) ListenUDP(port int) (c *net.UDPConn, err error) {
	err = namespace.Do(p.lab.Namespace(p.Part), func() error {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: p.Address.AsSlice(), Port: port})
		return err
	})
	return c, err
}

// Ask sends a datagram over a socket of DialUDP to the outside server's echo,
// and returns the source that the server saw. Answers to earlier datagrams are
// passed over, so payload must differ from call to call.
func Ask(ctx context.Context, c net.Conn, payload string) (netip.AddrPort, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return netip.AddrPort{}, err
		}
	}
	if _, err := io.WriteString(c, payload); err != nil {
		return netip.AddrPort{}, err
	}
	buf := make([]byte, 65536)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return netip.AddrPort{}, err
		}
		source, echoed, _ := strings.Cut(string(buf[:n]), " ")
		if echoed == payload {
			return netip.ParseAddrPort(source)
		}
	}
}

// String is NAMESPACE/NAME.
func (p *Pod) String() string { return p.Namespace + "/" + p.Name }
