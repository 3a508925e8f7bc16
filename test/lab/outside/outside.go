// SPDX-License-Identifier: Apache-2.0

// Package outside is the server on the lab's external network, which tells its
// clients what source it sees:
//
//   - HTTP: every path answers with the client's address as one line; a path
//     that begins with /port answers with address:port.
//   - TCP echo: sends back what it gets, for as long as the client likes.
//   - UDP echo: answers each packet with "address:port " and the packet.
package outside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
)

// Server has its sockets open, in the network namespace of the thread that
// called Listen, whichever goroutine serves them.
type Server struct {
	web  []net.Listener
	echo []net.Listener
	udp  []*net.UDPConn
}

// Listen opens all ports on each address.
func Listen(httpPort, echoPort int, addrs ...string) (*Server, error) {
	s := &Server{}
	for _, a := range addrs {
		if err := s.listen(a, httpPort, echoPort); err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: %w", a, err), s.Close())
		}
	}
	return s, nil
}

func (s *Server) listen(addr string, httpPort, echoPort int) error {
	web, err := net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(httpPort)))
	if err != nil {
		return err
	}
	s.web = append(s.web, web)
	return s.listenEcho(addr, echoPort)
}

func (s *Server) listenEcho(addr string, echoPort int) error {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	echo, err := net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(echoPort)))
	if err != nil {
		return err
	}
	s.echo = append(s.echo, echo)
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, uint16(echoPort))))
	if err != nil {
		return err
	}
	s.udp = append(s.udp, udp)
	return udp.SetReadBuffer(4 << 20)
}

// ListenEcho opens the echo services alone, TCP and UDP, on a range of ports of
// each address: whoever reads the wire can tell by the port whom a packet is of.
func ListenEcho(firstPort, count int, addrs ...string) (*Server, error) {
	s := &Server{}
	for i := range count * len(addrs) {
		addr, port := addrs[i%len(addrs)], firstPort+i/len(addrs)
		if err := s.listenEcho(addr, port); err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s port %d: %w", addr, port, err), s.Close())
		}
	}
	return s, nil
}

// Close closes all sockets. Serve does so itself when it ends.
func (s *Server) Close() error {
	var errs []error
	for _, l := range append(s.web, s.echo...) {
		errs = append(errs, l.Close())
	}
	for _, c := range s.udp {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Serve answers until ctx ends, then closes everything, connections included.
func (s *Server) Serve(ctx context.Context) error {
	web := &http.Server{Handler: http.HandlerFunc(tellSource)}
	var wg sync.WaitGroup
	for _, l := range s.web {
		wg.Go(func() { _ = web.Serve(l) }) // ends by Close only
	}
	for _, l := range s.echo {
		wg.Go(func() { serveTCP(ctx, l) })
	}
	for _, c := range s.udp {
		wg.Go(func() { serveUDP(c) })
	}
	<-ctx.Done()
	err := web.Close()
	for _, l := range s.echo {
		err = errors.Join(err, l.Close())
	}
	for _, c := range s.udp {
		err = errors.Join(err, c.Close())
	}
	wg.Wait()
	return err
}

func tellSource(w http.ResponseWriter, r *http.Request) {
	answer := r.RemoteAddr
	if !strings.HasPrefix(r.URL.Path, "/port") {
		if host, _, err := net.SplitHostPort(answer); err == nil {
			answer = host
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	fmt.Fprintln(w, answer)
}

func serveTCP(ctx context.Context, l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client went away before we looked
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			_, _ = io.Copy(c, c) // how a client ends its connection is its affair
		})
	}
}

func serveUDP(c *net.UDPConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		answer := append(from.AppendTo(nil), ' ')
		_, _ = c.WriteToUDPAddrPort(append(answer, buf[:n]...), from)
	}
}
