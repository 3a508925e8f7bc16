// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"egress-gateway.io/test/lab"
)

func up(ctx context.Context, args []string) error {
	f, name := flags("up", "")
	bin := f.String("bin", binDir(), "directory with kube-apiserver, nats-server, the agents and lab")
	dir := f.String("dir", "", "directory for logs and state (default: one in the system's temporary directory)")
	manifests := f.String("manifests", "", "comma list of YAML files, or directories of them, to apply (default: deploy/crds of the checkout)")
	nodes := f.Int("nodes", 2, "number of nodes")
	agents := f.Bool("agents", true, "start gateway-agent and cluster-agent too")
	leaky := f.Bool("default-via-gateway", false, "let pods without a policy reach the gateway with their own address")
	dual := f.Bool("dual-stack", false, "add an IPv6 plane beside the IPv4 one")
	if err := f.Parse(args); err != nil {
		return err
	}
	opts := lab.Options{Name: *name, Dir: *dir, BinDir: *bin, Log: os.Stdout, NodeDefaultViaGateway: *leaky, DualStack: *dual, Detach: true}
	if *manifests != "" {
		opts.Manifests = strings.Split(*manifests, ",")
	} else if own := filepath.Join(*bin, "../../deploy/crds"); exists(own) {
		opts.Manifests = []string{own}
	}
	for i := range *nodes {
		opts.Nodes = append(opts.Nodes, fmt.Sprintf("node%d", i+1))
	}
	l, err := lab.Up(ctx, opts)
	if err != nil {
		return err
	}
	pods, err := l.Populate(ctx, []string{"ns-blue", "ns-red"}, 2)
	if err == nil && len(opts.Manifests) > 0 {
		err = l.ApplyYAML(ctx, publicPool(*dual))
	}
	if err == nil && *agents {
		err = startAgents(ctx, l)
	}
	if err != nil {
		return errors.Join(err, l.Down())
	}
	explain(l, pods, *agents)
	return l.Close()
}

// publicPool is the pool of the demo.
func publicPool(dualStack bool) string {
	egress, gateway := "192.168.55.113-192.168.55.120", "192.168.99.13-192.168.99.20"
	if dualStack {
		egress, gateway = egress+`", "2001:db8:55::113-2001:db8:55::120`, gateway+`", "fd00:99::13-fd00:99::20`
	}
	return fmt.Sprintf(`
apiVersion: egress-gateway.io/v1alpha1
kind: EgressPool
metadata: {name: public}
spec:
  egressRanges: ["%s"]
  gatewayRanges: ["%s"]
`, egress, gateway)
}

func startAgents(ctx context.Context, l *lab.Lab) error {
	if _, err := l.StartGatewayAgent(ctx, nil); err != nil {
		return err
	}
	_, err := l.StartClusterAgent("cluster-agent", nil)
	return err
}

// explain tells a person how to look around.
func explain(l *lab.Lab, pods []*lab.Pod, agents bool) {
	fmt.Printf(`
The lab is up. Its parts are network namespaces:
  %-24s the gateway VM            ip netns exec %[1]s ip -brief address
  %-24s the control plane         ip netns exec %[2]s env KUBECONFIG=%[3]s kubectl get namespaces
  %-24s external wire and server  ip netns exec %[4]s tcpdump -ni gw
  %-24s internal switch           ip netns exec %[5]s bridge link
`, l.Namespace(lab.PartGateway), l.Namespace(lab.PartControl), l.Kubeconfig(), l.Namespace(lab.PartExternal), l.Namespace(lab.PartInternal))
	for _, n := range l.Nodes() {
		fmt.Printf("  %-24s a node                    ip netns exec %[1]s ip rule\n", l.Namespace(lab.Part(n)))
	}
	fmt.Printf("Pods (their namespaces begin with %s-):\n", l.Name())
	for _, p := range pods {
		fmt.Printf("  %-32s %s on %s\n", p.Part, addresses(p), p.Node)
	}
	fmt.Printf("Ask the outside server which source it sees:\n  %s get --name %s %s\n", os.Args[0], l.Name(), pods[0].Part)
	if agents {
		fmt.Printf("Give a namespace an egress IP, look at the gateway, ask again:\n  %[2]s exec --name %[1]s ctl kubectl label namespace ns-blue egress-gateway.io/pool=public\n  %[2]s exec --name %[1]s gw gateway-agent status\n", l.Name(), os.Args[0])
	}
	fmt.Printf("Logs are in %s. To remove it all: %s down --name %s\n", filepath.Join(l.Dir(), "log"), os.Args[0], l.Name())
}

func addresses(p *lab.Pod) string {
	if p.Address6.IsValid() {
		return p.Address.String() + " " + p.Address6.String()
	}
	return p.Address.String()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
