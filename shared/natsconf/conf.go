// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"fmt"
	"net"
	"path"
	"strconv"
	"strings"

	"egress-gateway.io/shared/bus"
)

// Account is the account that holds all streams and buckets.
const Account = "EGRESS"

// Files of a server, beside its nats.conf.
const (
	confFile       = "nats.conf"
	caFile         = "ca.crt"
	serverCertFile = "server.crt"
	serverKeyFile  = "server.key"
	routeCAFile    = "route-ca.crt"
	routeCertFile  = "route.crt"
	routeKeyFile   = "route.key"
)

// Conf returns the nats.conf of one server. The installation must be valid.
//
// Nobody connects without TLS, a certificate of ours and a key that stands here.
// A lone server writes every message to disk before it acknowledges it: there is
// no other copy.
func (i Installation) Conf(server string) (string, error) {
	s, ok := i.server(server)
	if !ok {
		return "", fmt.Errorf("there is no NATS server %q", server)
	}
	listen := s.Listen
	if listen == "" {
		listen = "0.0.0.0" // to Go this means IPv6 as well
	}
	w := &confWriter{}
	w.line("# Made by egressctl init; changes here are lost. `nats-server --signal reload` applies a new one.")
	w.line("server_name: %q", s.Name)
	w.line("listen: %q", net.JoinHostPort(listen, strconv.Itoa(i.Port)))
	if i.MonitorPort != 0 {
		w.line("# No authentication there, hence for this machine only.")
		w.line("http: %q", net.JoinHostPort("127.0.0.1", strconv.Itoa(i.MonitorPort)))
	}
	w.open("tls")
	w.line("cert_file: %q", path.Join(i.ConfigDir, serverCertFile))
	w.line("key_file: %q", path.Join(i.ConfigDir, serverKeyFile))
	w.line("ca_file: %q", path.Join(i.ConfigDir, caFile))
	w.line("verify: true")
	w.line("timeout: 5")
	w.close()
	w.open("jetstream")
	w.line("store_dir: %q", i.StoreDir)
	w.line("max_file_store: %d", i.MaxStore)
	w.line("max_memory_store: %d", 256<<20)
	if len(i.Servers) == 1 {
		w.line("sync_interval: always")
	}
	w.close()
	if len(i.Servers) > 1 {
		i.cluster(w, s, listen)
	}
	i.accounts(w)
	return w.String(), nil
}

// cluster writes how the servers find and know each other.
func (i Installation) cluster(w *confWriter, s Server, listen string) {
	w.open("cluster")
	w.line("name: %q", "egress-gateway")
	w.line("listen: %q", net.JoinHostPort(listen, strconv.Itoa(i.RoutePort)))
	w.line("# Clients need not learn of addresses that their certificates do not have.")
	w.line("no_advertise: true")
	w.open("tls")
	w.line("cert_file: %q", path.Join(i.ConfigDir, routeCertFile))
	w.line("key_file: %q", path.Join(i.ConfigDir, routeKeyFile))
	w.line("ca_file: %q", path.Join(i.ConfigDir, routeCAFile))
	w.line("verify: true")
	w.line("timeout: 5")
	w.close()
	w.line("routes: [")
	for _, other := range i.Servers {
		if other.Name != s.Name {
			w.line("  %q", "tls://"+net.JoinHostPort(other.Hosts[0], strconv.Itoa(i.RoutePort)))
		}
	}
	w.line("]")
	w.close()
}

// accounts writes the users. Each may publish what its role needs, and subscribe
// to nothing but its own inbox.
func (i Installation) accounts(w *confWriter) {
	w.open("accounts")
	w.line("SYS: {}")
	w.open(Account)
	w.line("jetstream: enabled")
	w.line("users: [")
	for _, u := range i.Users {
		for n, key := range u.Keys {
			note := ""
			if n < len(u.Keys)-1 {
				note = ", its old key"
			}
			w.line("  # %s %s%s", u.Role, u.Name, note)
			w.line("  {nkey: %q, permissions: {", key)
			w.line("    publish: {allow: [")
			for _, subject := range u.permissions() {
				w.line("      %q", subject)
			}
			w.line("    ]}")
			w.line("    subscribe: {allow: [%q]}", bus.Inbox(u.Name)+".>")
			w.line("  }}")
		}
	}
	w.line("]")
	w.close()
	w.close()
	w.line("system_account: SYS")
}

func (u User) permissions() []string {
	switch u.Role {
	case RoleCluster:
		return bus.ClusterPermissions(u.Name)
	case RoleGateway:
		return bus.GatewayPermissions(u.Name)
	case RoleAuditor:
		return bus.AuditorPermissions()
	case RoleSetup:
		return bus.SetupPermissions()
	}
	return nil
}

// confWriter writes blocks with their indentation.
type confWriter struct {
	strings.Builder
	depth int
}

func (w *confWriter) line(format string, args ...any) {
	w.WriteString(strings.Repeat("  ", w.depth))
	fmt.Fprintf(w, format+"\n", args...)
}

func (w *confWriter) open(block string) {
	w.line("%s {", block)
	w.depth++
}

func (w *confWriter) close() {
	w.depth--
	w.line("}")
}
