// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nkeys"

	"egress-gateway.io/shared/tenant"
)

// Role is what a user of NATS is allowed.
type Role string

// The roles. Auditor and Setup are also the names of their only users.
const (
	RoleCluster Role = "cluster" // a cluster-agent: writes one cluster's state
	RoleGateway Role = "gateway" // a gateway-agent: reads the state, writes its own status
	RoleAuditor Role = "auditor" // reads the audit and the status
	RoleSetup   Role = "setup"   // creates streams and buckets
)

// Defaults of an Installation.
const (
	DefaultPort           = 4222
	DefaultRoutePort      = 6222
	DefaultMonitorPort    = 8222
	DefaultConfigDir      = "/etc/nats"
	DefaultStoreDir       = "/var/lib/nats"
	DefaultCredentialsDir = "/etc/egress-gateway/nats"
	DefaultMaxStore       = 4 << 30
)

// version of the JSON form.
const version = 1

// Installation says which servers and users there are. It holds no secret.
type Installation struct {
	Version int      `json:"version"`
	Servers []Server `json:"servers"`
	Users   []User   `json:"users"`

	// Port, RoutePort and MonitorPort are TCP ports. The monitoring port is open
	// on the loopback interface only; 0 closes it.
	Port        int `json:"port"`
	RoutePort   int `json:"routePort"`
	MonitorPort int `json:"monitorPort"`

	// ConfigDir is where a server finds its folder of the directory, StoreDir
	// where it keeps streams, and CredentialsDir where an agent finds its own
	// folder: paths as that process sees them, in its container perhaps.
	ConfigDir      string `json:"configDir"`
	StoreDir       string `json:"storeDir"`
	CredentialsDir string `json:"credentialsDir"`
	// MaxStore bounds the streams on disk, in bytes, at each server.
	MaxStore int64 `json:"maxStore"`
}

// Server is one nats-server.
type Server struct {
	Name string `json:"name"`
	// Hosts are the names and addresses under which clients and other servers
	// reach it. The first one stands in URLs; its certificate has all.
	Hosts []string `json:"hosts"`
	// Listen is the address it listens on; empty: all.
	Listen string `json:"listen,omitempty"`
}

// User is somebody who may connect.
type User struct {
	// Name is a DNS label, unique among all users: a user's inbox is named so.
	Name string `json:"name"`
	Role Role   `json:"role"`
	// Keys are public nkeys, all of which are valid: two during a rotation, the
	// newest last.
	Keys []string `json:"keys"`
}

// withDefaults fills what is zero.
func (i Installation) withDefaults() Installation {
	i.Version = version
	set := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	set(&i.Port, DefaultPort)
	set(&i.RoutePort, DefaultRoutePort)
	text := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	text(&i.ConfigDir, DefaultConfigDir)
	text(&i.StoreDir, DefaultStoreDir)
	text(&i.CredentialsDir, DefaultCredentialsDir)
	if i.MaxStore == 0 {
		i.MaxStore = DefaultMaxStore
	}
	return i
}

// Validate says everything that is wrong, joined. What it accepts can stand in
// nats.conf, in file names and in environment files as it is.
func (i Installation) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if i.Version != version {
		bad("version %d of the installation is unknown; this program writes version %d", i.Version, version)
	}
	if n := len(i.Servers); n != 1 && n != 3 && n != 5 {
		bad("%d NATS servers; want 1, 3 or 5", n)
	}
	names := map[string]string{}
	claim := func(name, what string) {
		if err := tenant.ValidateLabel(name); err != nil {
			bad("name of a %s: %w", what, err)
		}
		if other, taken := names[name]; taken {
			bad("the %s %q has the name of a %s; all names must differ, as each is the name of an inbox", what, name, other)
		}
		names[name] = what
	}
	for _, u := range i.Users {
		claim(u.Name, string(u.Role))
		errs = append(errs, u.validate())
	}
	servers := map[string]bool{}
	for _, s := range i.Servers {
		if servers[s.Name] {
			bad("two servers are named %q", s.Name)
		}
		servers[s.Name] = true
		errs = append(errs, s.validate())
	}
	for what, port := range map[string]int{"client": i.Port, "route": i.RoutePort} {
		if port < 1 || port > 65535 {
			bad("%s port %d: want 1 to 65535", what, port)
		}
	}
	if i.MonitorPort < 0 || i.MonitorPort > 65535 {
		bad("monitoring port %d: want 1 to 65535, or 0 for none", i.MonitorPort)
	}
	for _, p := range []string{i.ConfigDir, i.StoreDir, i.CredentialsDir} {
		if !path.IsAbs(p) || strings.ContainsAny(p, "\"'\\$ \t\r\n") {
			bad("directory %q: want an absolute path without blanks and quotes", p)
		}
	}
	if i.MaxStore < 1<<20 {
		bad("%d bytes for streams are too few", i.MaxStore)
	}
	return errors.Join(errs...)
}

func (u User) validate() error {
	switch u.Role {
	case RoleCluster, RoleGateway, RoleAuditor, RoleSetup:
	default:
		return fmt.Errorf("user %s: unknown role %q", u.Name, u.Role)
	}
	if len(u.Keys) == 0 {
		return fmt.Errorf("user %s has no key", u.Name)
	}
	for _, k := range u.Keys {
		if !nkeys.IsValidPublicUserKey(k) {
			return fmt.Errorf("user %s: %q is no public nkey of a user", u.Name, k)
		}
	}
	return nil
}

func (s Server) validate() error {
	if err := tenant.ValidateLabel(s.Name); err != nil {
		return fmt.Errorf("name of a NATS server: %w", err)
	}
	if len(s.Hosts) == 0 {
		return fmt.Errorf("NATS server %s has no host: give the name or the address under which the agents reach it", s.Name)
	}
	for _, h := range s.Hosts {
		if _, err := netip.ParseAddr(h); err != nil && tenant.ValidateName(h) != nil {
			return fmt.Errorf("NATS server %s: %q is neither a host's name nor an address", s.Name, h)
		}
	}
	if s.Listen != "" {
		if _, err := netip.ParseAddr(s.Listen); err != nil {
			return fmt.Errorf("NATS server %s listens on %q, which is no address", s.Name, s.Listen)
		}
	}
	return nil
}

// URLs returns where clients connect to, one for each server.
func (i Installation) URLs() []string {
	out := make([]string, len(i.Servers))
	for n, s := range i.Servers {
		out[n] = "tls://" + net.JoinHostPort(s.Hosts[0], strconv.Itoa(i.Port))
	}
	return out
}

// Replicas is how many copies streams and buckets have: one, or three if there
// are as many servers.
func (i Installation) Replicas() int { return min(len(i.Servers), 3) }

// User returns the user of a name.
func (i Installation) User(name string) (User, bool) {
	n := slices.IndexFunc(i.Users, func(u User) bool { return u.Name == name })
	if n < 0 {
		return User{}, false
	}
	return i.Users[n], true
}

func (i Installation) server(name string) (Server, bool) {
	n := slices.IndexFunc(i.Servers, func(s Server) bool { return s.Name == name })
	if n < 0 {
		return Server{}, false
	}
	return i.Servers[n], true
}
