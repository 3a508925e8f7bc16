// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Endpoints is the HTTP server of a daemon: /livez, /readyz, /healthz (the same
// as /livez) and /metrics. It has no authentication; Address should be loopback
// on a machine that is not trusted throughout.
type Endpoints struct {
	// Address is host:port to listen on; port 0 takes any free one.
	Address string
	// Live says nil as long as the program's own loops turn over. It must not
	// depend on NATS or the API server: a restart would not mend those.
	Live func() error
	// Ready says nil once the program has something to work with.
	Ready func() error
	// Registry holds the metrics.
	Registry *prometheus.Registry
}

// Timeouts of the server: everything it serves is small and local.
const (
	headerTimeout   = 5 * time.Second
	shutdownTimeout = 3 * time.Second
)

// Listen opens the socket, so that a wrong address is an error at start. The
// server must then be run, or closed.
func (e Endpoints) Listen() (*Server, error) {
	l, err := net.Listen("tcp", e.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for health and metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /livez", probe(e.Live))
	mux.Handle("GET /healthz", probe(e.Live))
	mux.Handle("GET /readyz", probe(e.Ready))
	if e.Registry != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(e.Registry, promhttp.HandlerOpts{Registry: e.Registry}))
	}
	return &Server{listener: l, http: &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}}, nil
}

// Server serves Endpoints.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Addr is the address it listens on.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx ends, then lets requests under way finish for a few
// seconds. It returns nil if ctx ended it.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.http.Serve(s.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve health and metrics: %w", err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := s.http.Shutdown(grace)
	<-done
	if err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// Close frees the socket of a server that is not run.
func (s *Server) Close() error { return s.listener.Close() }

// probe answers 200 "ok" or 503 with the reason.
func probe(check func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if check != nil {
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprintln(w, err)
				return
			}
		}
		fmt.Fprintln(w, "ok")
	})
}
