// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"egress-gateway.io/shared/bus"
	"egress-gateway.io/shared/daemon"
	"egress-gateway.io/shared/settings"
	"egress-gateway.io/shared/tenant"
)

// envPrefix begins the name of each environment variable that is ours.
const envPrefix = "CLUSTER"

// Config is the whole configuration, read from CLUSTER_* once at start. The
// tags are the only place where names, meanings and defaults stand: --help is
// printed from them.
type Config struct {
	Name               string         `desc:"required; this cluster's name, unique among all that share gateways: an RFC 1123 label"`
	PodNetworks        []netip.Prefix `split_words:"true" desc:"required; networks that cover all pod addresses of the cluster, e.g. 10.128.0.0/14"`
	Kubeconfig         string         `desc:"kubeconfig file; empty in a pod, which has its service account"`
	LeaseNamespace     string         `split_words:"true" desc:"namespace of the Lease that makes a leader; by default the pod's own, else kube-system"`
	LeaseName          string         `split_words:"true" default:"egress-cluster-agent" desc:"name of the Lease; the same for all replicas"`
	LeaseDuration      time.Duration  `split_words:"true" default:"15s" desc:"how long replicas wait for a leader that is silent"`
	LeaseRenewDeadline time.Duration  `split_words:"true" default:"10s" desc:"after how long without success a leader gives up; less than the duration"`
	LeaseRetryPeriod   time.Duration  `split_words:"true" default:"2s" desc:"how often the Lease is tried; less than the renew deadline"`
	Identity           string         `desc:"name of this replica, unique among them; by default the host's name"`
	StateDir           string         `split_words:"true" default:"/var/lib/egress-gateway/cluster-agent" desc:"directory of the audit spool; writable, and durable if events must survive a lost pod while NATS is away"`
	Listen             string         `default:"127.0.0.1:9808" desc:"address of /livez, /readyz and /metrics; no authentication"`
	LogLevel           string         `split_words:"true" default:"info" desc:"debug, info, warn or error"`
	LogFormat          string         `split_words:"true" default:"json" desc:"json or text"`
	NATS               bus.Config     `desc:"the NATS servers"`
}

// podNamespace is where a pod finds the name of its namespace.
const podNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// loadConfig reads and validates the environment. The error joins everything
// that is wrong; each line names the variable, the value and the remedy.
func loadConfig(environ []string) (Config, error) {
	var c Config
	complete, errs := settings.Read("cluster-agent", envPrefix, environ, &c)
	if !complete {
		return c, errors.Join(errs...)
	}
	if c.Identity == "" {
		host, err := os.Hostname()
		if err != nil {
			errs = append(errs, fmt.Errorf("CLUSTER_IDENTITY is not set, and the host has no name: %w", err))
		}
		c.Identity = host
	}
	if c.LeaseNamespace == "" {
		c.LeaseNamespace = "kube-system"
		if b, err := os.ReadFile(podNamespace); err == nil {
			c.LeaseNamespace = strings.TrimSpace(string(b))
		}
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
		wrong("NAME", c.Name, "want the cluster's name: lower-case letters, digits and inner dashes, e.g. prod-1")
	}
	network := tenant.Network{Schema: tenant.Schema, Cluster: "any", PodNetworks: c.PodNetworks}
	switch err := network.Validate(); {
	case len(c.PodNetworks) == 0:
		wrong("POD_NETWORKS", "", "want the cluster's pod networks, e.g. 10.128.0.0/14 (oc get network.config/cluster -o jsonpath='{.spec.clusterNetwork[*].cidr}')")
	case err != nil:
		wrong("POD_NETWORKS", joined(c.PodNetworks), fmt.Sprintf("%v; want networks such as 10.128.0.0/14,fd01::/48", err))
	}
	if err := tenant.ValidateName(c.LeaseNamespace); err != nil {
		wrong("LEASE_NAMESPACE", c.LeaseNamespace, "want the name of a namespace that exists")
	}
	if err := tenant.ValidateName(c.LeaseName); err != nil {
		wrong("LEASE_NAME", c.LeaseName, "want a name of lower-case letters, digits, dots and dashes")
	}
	if c.LeaseRetryPeriod <= 0 || c.LeaseRenewDeadline <= c.LeaseRetryPeriod*6/5 || c.LeaseDuration <= c.LeaseRenewDeadline || c.LeaseDuration < time.Second {
		wrong("LEASE_DURATION", c.LeaseDuration.String(), fmt.Sprintf("want CLUSTER_LEASE_DURATION (1s or more) > CLUSTER_LEASE_RENEW_DEADLINE (%s) > 1.2 x CLUSTER_LEASE_RETRY_PERIOD (%s) > 0, e.g. 15s, 10s, 2s", c.LeaseRenewDeadline, c.LeaseRetryPeriod))
	}
	if c.Kubeconfig != "" {
		if _, err := os.Stat(c.Kubeconfig); err != nil {
			wrong("KUBECONFIG", c.Kubeconfig, err.Error()+"; give the path of a kubeconfig file, or leave it out in a pod")
		}
	}
	if c.StateDir == "" {
		wrong("STATE_DIR", "", "want a writable directory")
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		wrong("LISTEN", c.Listen, "want host:port, e.g. 127.0.0.1:9808 or :9808")
	}
	if _, err := daemon.NewLogger(io.Discard, "json", c.LogLevel); err != nil {
		wrong("LOG_LEVEL", c.LogLevel, "want debug, info, warn or error")
	}
	if _, err := daemon.NewLogger(io.Discard, c.LogFormat, "info"); err != nil {
		wrong("LOG_FORMAT", c.LogFormat, "want json or text")
	}
	if err := c.NATS.Validate(envPrefix + "_NATS"); err != nil {
		errs = append(errs, err)
	}
	return errs
}

func joined(list []netip.Prefix) string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return strings.Join(out, ",")
}

// printHelp explains the program and all its variables.
func printHelp(w io.Writer) error {
	fmt.Fprint(w, `cluster-agent gives the tenants of one cluster their egress addresses: it watches
namespaces, nodes and EgressPools, stores allocations in EgressTenants, writes the
routes for OVN-Kubernetes, and tells the gateways over NATS. It serves until
SIGTERM. Of several replicas one leads; the others are warm.

Usage: cluster-agent [--help | --version | healthcheck]

healthcheck asks the agent that runs beside it whether it is ready: exit code 1 if not.

Environment variables:
`)
	return settings.Print(w, envPrefix, &Config{})
}
