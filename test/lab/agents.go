// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"maps"
	"os"
	"time"
)

// GatewayAgentName and the names given to StartClusterAgent are those under
// which Process finds the agents.
const GatewayAgentName = "gateway-agent"

// firstAgentPort is where the first cluster-agent serves its pages, inside the
// control namespace; the next one has the next port.
const firstAgentPort = 9820

// GatewayStateDir is the agent's state directory; it outlives ResetGateway.
func (l *Lab) GatewayStateDir() string { return l.path("gateway") }

// GatewayEnv is the environment that StartGatewayAgent gives to the agent.
func (l *Lab) GatewayEnv() map[string]string {
	env := map[string]string{
		"GATEWAY_NAME": labGateway, "GATEWAY_GROUP": "default",
		"GATEWAY_INTERNAL_INTERFACE": "enp1s0", "GATEWAY_EXTERNAL_INTERFACE": "enp7s0",
		"GATEWAY_STATE_DIR": l.GatewayStateDir(),
	}
	if l.opts.NATS == NATSEmbedded {
		env["GATEWAY_NATS_EMBEDDED"], env["GATEWAY_NATS_EMBEDDED_CONFIG"] = "true", l.NATSConf(0)
	}
	return withNATS("GATEWAY", l.NATSConfig(labGateway), env)
}

// StartGatewayAgent starts gateway-agent on the gateway VM. env adds to
// GatewayEnv and wins over it; an empty value takes a variable away. With args
// it runs a subcommand under a name of its own, beside the agent. It does not
// wait for readiness, and ctx ends with the call: it does not end the process.
func (l *Lab) StartGatewayAgent(ctx context.Context, env map[string]string, args ...string) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start gateway-agent: %w", err)
	}
	name := GatewayAgentName
	if len(args) > 0 {
		name += "-" + args[0]
	}
	return l.Start(PartGateway, name, override(l.GatewayEnv(), env), append([]string{"gateway-agent"}, args...)...)
}

// GatewayCommand runs a subcommand of gateway-agent to its end, with the
// environment of the agent, and returns its output.
func (l *Lab) GatewayCommand(args ...string) (string, error) {
	binary, err := l.lookPath("gateway-agent")
	if err != nil {
		return "", err
	}
	return l.output(PartGateway, l.GatewayEnv(), append([]string{binary}, args...))
}

// AuditCommand runs `egressctl audit` with these arguments, as the auditor, and
// returns what it prints.
func (l *Lab) AuditCommand(verb string, args ...string) (string, error) {
	binary, err := l.lookPath("egressctl")
	if err != nil {
		return "", err
	}
	return l.output(PartControl, nil, append([]string{binary, "audit", verb, "--credentials", l.path("installation", "auditor")}, args...))
}

// ClusterEnv is the environment that StartClusterAgent gives to an agent of
// this name. Agents of several names have ports and state of their own, as
// replicas on several nodes have.
func (l *Lab) ClusterEnv(name string) map[string]string {
	l.mu.Lock()
	port, known := l.ports[name]
	if !known {
		port = firstAgentPort + len(l.ports)
		l.ports[name] = port
	}
	l.mu.Unlock()
	return withNATS("CLUSTER", l.NATSConfig(labCluster), map[string]string{
		"CLUSTER_LISTEN": fmt.Sprintf("127.0.0.1:%d", port),
		"CLUSTER_NAME":   labCluster, "CLUSTER_POD_NETWORKS": l.podNetworks(),
		"CLUSTER_KUBECONFIG": l.path("cluster-agent.kubeconfig"),
		"CLUSTER_STATE_DIR":  l.path("agents", name),
	})
}

// StartClusterAgent starts a cluster-agent in the control namespace, under a
// name of its own. env is as for StartGatewayAgent.
func (l *Lab) StartClusterAgent(name string, env map[string]string) (*Process, error) {
	if err := os.MkdirAll(l.path("agents", name), 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return l.Start(PartControl, name, override(l.ClusterEnv(name), env), "cluster-agent")
}

// AwaitPage waits until a page of a process answers 200, for at most
// startTimeout. That the process ends is an error.
func (l *Lab) AwaitPage(ctx context.Context, p *Process, url string) error {
	return l.await(ctx, p, func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := l.HTTPGet(ctx, p.Part, url)
		return err
	})
}

func override(base, with map[string]string) map[string]string {
	maps.Copy(base, with)
	maps.DeleteFunc(base, func(_, value string) bool { return value == "" })
	return base
}
