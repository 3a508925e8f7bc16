// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
	"egress-gateway.io/shared/settings"
	"egress-gateway.io/shared/tenant"
)

// envPrefix begins the name of each environment variable that is ours.
const envPrefix = "GATEWAY"

// minResync keeps a slip of the unit from making the agent look at nothing but
// the kernel.
const minResync = 100 * time.Millisecond

// maxProbeWait bounds what each change may wait for nobody's answer.
const maxProbeWait = time.Second

// Config is the whole configuration, read from GATEWAY_* once at start. The
// tags are the only place where names, meanings and defaults stand: --help is
// printed from them.
type Config struct {
	Name              string         `desc:"required; this gateway's name, unique among all: an RFC 1123 label"`
	Group             string         `default:"default" desc:"the gateway group it belongs to; pools name groups"`
	InternalInterface string         `split_words:"true" desc:"required; the NIC towards the cluster nodes, e.g. enp1s0"`
	ExternalInterface string         `split_words:"true" desc:"required; the NIC towards the outside, e.g. enp7s0; it must hold the default route"`
	PodNetworks       []netip.Prefix `split_words:"true" desc:"further pod networks that the guards cover, e.g. 10.128.0.0/14; the clusters publish theirs"`
	MarkMask          uint32         `split_words:"true" default:"0xfff00000" desc:"the bits of the packet mark that are ours: contiguous, 12 or more"`
	StateDir          string         `split_words:"true" default:"/var/lib/egress-gateway" desc:"directory of the disk copy and the audit spool; writable, durable"`
	SysctlRoot        string         `split_words:"true" default:"/proc/sys" desc:"where sysctls are set; /host/proc/sys in a container that has it mounted there"`
	IPTables          string         `default:"iptables" desc:"the iptables to use: iptables (what the machine or the image prefers), iptables-nft or iptables-legacy; it must be the one that the host's rules are in"`
	Resync            time.Duration  `default:"30s" desc:"how often the kernel is compared with what it should be, without an event"`
	ProbeWait         time.Duration  `split_words:"true" default:"60ms" desc:"how long an answer is waited for when the network is asked whether somebody else has an address, before it is claimed; 0s: not asked"`
	Listen            string         `default:"127.0.0.1:9809" desc:"address of /livez, /readyz and /metrics; no authentication"`
	LogLevel          string         `split_words:"true" default:"info" desc:"debug, info, warn or error"`
	LogFormat         string         `split_words:"true" default:"json" desc:"json or text"`
	NATS              bus.Config     `desc:"the NATS servers"`

	NATSEmbedded       bool   `split_words:"true" desc:"true: a NATS server runs inside this agent, which connects to no other"`
	NATSEmbeddedConfig string `split_words:"true" default:"/etc/nats/nats.conf" desc:"the embedded server's configuration, with its certificates and keys beside it, as egressctl init writes it"`
	NATSEmbeddedListen string `split_words:"true" desc:"address of the embedded server, host:port; empty: what its configuration says"`
}

// loadConfig reads and validates the environment. The error joins everything
// that is wrong; each line names the variable, the value and the remedy.
func loadConfig(environ []string) (Config, error) {
	var c Config
	complete, errs := settings.Read("gateway-agent", envPrefix, environ, &c)
	if !complete {
		return c, errors.Join(errs...)
	}
	return c, errors.Join(append(errs, c.validate()...)...)
}

func (c Config) validate() []error {
	var errs []error
	wrong := func(variable, value, remedy string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("%s_%s is not set: %s", envPrefix, variable, remedy))
			return
		}
		errs = append(errs, fmt.Errorf("%s_%s=%q: %s", envPrefix, variable, value, remedy))
	}
	if err := tenant.ValidateLabel(c.Name); err != nil {
		wrong("NAME", c.Name, "give this gateway a name of lower-case letters, digits and inner dashes, e.g. gw1")
	}
	if err := tenant.ValidateLabel(c.Group); err != nil {
		wrong("GROUP", c.Group, "want lower-case letters, digits and inner dashes, as in the pools' spec.gatewayGroup")
	}
	c.validateInterfaces(wrong)
	for _, p := range c.PodNetworks {
		if p != p.Masked() || p.Bits() == 0 {
			wrong("POD_NETWORKS", p.String(), fmt.Sprintf("want networks in canonical form, not everything; here perhaps %s", p.Masked()))
		}
	}
	if m := c.MarkMask; bits.OnesCount32(m) < 12 || m>>bits.TrailingZeros32(m)&(m>>bits.TrailingZeros32(m)+1) != 0 {
		wrong("MARK_MASK", fmt.Sprintf("%#x", m), "want 12 or more bits without a gap, e.g. 0xfff00000")
	}
	for variable, dir := range map[string]string{"STATE_DIR": c.StateDir, "SYSCTL_ROOT": c.SysctlRoot} {
		if !filepath.IsAbs(dir) {
			wrong(variable, dir, "want an absolute path")
		}
	}
	if !slices.Contains([]string{"iptables", "iptables-nft", "iptables-legacy"}, c.IPTables) {
		wrong("IPTABLES", c.IPTables, "want iptables, iptables-nft or iptables-legacy")
	}
	if c.Resync < minResync || c.Resync > time.Hour {
		wrong("RESYNC", c.Resync.String(), "want 100ms to 1h, e.g. 30s")
	}
	if c.ProbeWait < 0 || c.ProbeWait > maxProbeWait {
		wrong("PROBE_WAIT", c.ProbeWait.String(), "want 0s (off) to 1s, e.g. 60ms")
	}
	if _, port, err := net.SplitHostPort(c.Listen); err != nil || !isPort(port) {
		wrong("LISTEN", c.Listen, "want host:port, e.g. 127.0.0.1:9809")
	}
	if _, err := daemon.NewLogger(io.Discard, "json", c.LogLevel); err != nil {
		wrong("LOG_LEVEL", c.LogLevel, "want debug, info, warn or error")
	}
	if _, err := daemon.NewLogger(io.Discard, c.LogFormat, "info"); err != nil {
		wrong("LOG_FORMAT", c.LogFormat, "want json or text")
	}
	if _, port, err := net.SplitHostPort(c.NATSEmbeddedListen); c.NATSEmbeddedListen != "" && (err != nil || !isPort(port)) {
		wrong("NATS_EMBEDDED_LISTEN", c.NATSEmbeddedListen, "want host:port, e.g. 0.0.0.0:4222")
	}
	if !filepath.IsAbs(c.NATSEmbeddedConfig) {
		wrong("NATS_EMBEDDED_CONFIG", c.NATSEmbeddedConfig, "want an absolute path")
	}
	if err := c.NATS.Validate(envPrefix + "_NATS"); err != nil {
		errs = append(errs, err)
	}
	return errs
}

func (c Config) validateInterfaces(wrong func(variable, value, remedy string)) {
	for _, i := range []struct{ variable, name string }{
		{"INTERNAL_INTERFACE", c.InternalInterface},
		{"EXTERNAL_INTERFACE", c.ExternalInterface},
	} {
		if !isInterfaceName(i.name) {
			wrong(i.variable, i.name, "want the name of a network interface, as `ip link` shows it, e.g. enp1s0")
		}
	}
	if c.InternalInterface != "" && c.InternalInterface == c.ExternalInterface {
		wrong("EXTERNAL_INTERFACE", c.ExternalInterface, "the same as GATEWAY_INTERNAL_INTERFACE; a gateway needs two NICs")
	}
}

// isInterfaceName follows the kernel's dev_valid_name.
func isInterfaceName(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for _, r := range s {
		if r <= ' ' || r == '/' || r == ':' || r == 0x7f {
			return false
		}
	}
	return true
}

func isPort(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}
