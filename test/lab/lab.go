// SPDX-License-Identifier: Apache-2.0

// Package lab builds, from network namespaces, a small cluster with a gateway
// VM, an outside server and a control plane, for the demo, the tests and the
// benchmarks. The kernel, etcd, kube-apiserver, kube-controller-manager and
// nats-server in it are real; OVN-Kubernetes is not: package apbstandin plays
// its part.
//
// Each lab has a name, and all it makes on the machine carries it, so any
// number of labs stand side by side. The address plan is in topology.go.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"egress-gateway.io/shared/natsconf"
	"egress-gateway.io/test/lab/namespace"
)

// Options say what lab to build. Name and BinDir have no default.
type Options struct {
	Name   string    // lower-case letters and digits; tells labs of one machine apart
	Dir    string    // logs and state; default: a directory of this name in the system's temporary directory
	BinDir string    // where kube-apiserver, nats-server, the agents and lab itself are
	Log    io.Writer // progress for a person; default: none
	Nodes  []string  // default: node1, node2

	// Manifests are YAML files, or directories of them, to apply once the API
	// server is up, beside the CRDs of OVN-Kubernetes that the lab brings.
	Manifests []string

	// ClusterAgentUser is the name under which cluster-agents reach the API
	// server, such as system:serviceaccount:NAMESPACE:NAME, to prove their
	// RBAC rules. Default: an administrator.
	ClusterAgentUser string

	// NodeDefaultViaGateway gives nodes a default route by the gateway VM's own
	// address, untranslated: pods that no policy covers then reach the gateway
	// with their own address. Default: such pods reach nothing outside.
	NodeDefaultViaGateway bool

	// SecondGateway adds another gateway VM, PartGateway2, without an agent.
	SecondGateway bool

	// DualStack adds the IPv6 plane of dualstack.go: nodes, pods, gateway VM and
	// servers then have an address of each family.
	DualStack bool

	// NATS says where the NATS servers are; default: one by itself.
	NATS NATS

	// Detach lets the lab outlive the calling program: its processes do not die
	// with it, and the outside server and the stand-in run as processes of the
	// lab command. Close then lets go of it; DownByName removes it.
	Detach bool
}

// Lab is a lab that is up. Its methods may be called by any goroutine, but
// those that change one node, or the gateway, not by two at once.
type Lab struct {
	opts      Options
	authority []byte // the API server's certificate, PEM
	spawner   *spawner
	kube      kubernetes.Interface
	dynamic   dynamic.Interface
	inside    *insiders

	natsInstallation natsconf.Installation

	mu        sync.Mutex
	handles   map[Part]*netlink.Handle
	processes map[string]*Process
	nodes     map[string]*Node
	ports     map[string]int // of cluster-agents
}

// Up builds a lab. What a lab of this name left before is removed first, its
// state too. On an error nothing but logs is left.
func Up(ctx context.Context, opts Options) (*Lab, error) {
	l, err := newLab(opts)
	if err != nil {
		return nil, err
	}
	if err := l.up(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: %w", opts.Name, err), l.Down())
	}
	return l, nil
}

func newLab(opts Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root: it makes network namespaces")
	}
	if opts.BinDir == "" {
		return nil, errors.New("lab options: no BinDir")
	}
	if opts.Dir == "" {
		opts.Dir = filepath.Join(os.TempDir(), "egress-gateway-lab-"+opts.Name)
	}
	if opts.Log == nil {
		opts.Log = io.Discard
	}
	if len(opts.Nodes) == 0 {
		opts.Nodes = []string{"node1", "node2"}
	}
	var err error
	if opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
		return nil, fmt.Errorf("lab directory: %w", err)
	}
	if opts.BinDir, err = filepath.Abs(opts.BinDir); err != nil {
		return nil, fmt.Errorf("lab BinDir: %w", err)
	}
	if err := DownByName(opts.Name); err != nil {
		return nil, err
	}
	l := &Lab{opts: opts, spawner: newSpawner(), handles: map[Part]*netlink.Handle{},
		processes: map[string]*Process{}, nodes: map[string]*Node{}, ports: map[string]int{}}
	l.inside = newInsiders()
	return l, nil
}

func (l *Lab) up(ctx context.Context) error {
	began := time.Now()
	for _, dir := range []string{"run", "log", "kube", "etcd", "nats", "installation", "gateway", "agents"} {
		if err := l.empty(dir); err != nil {
			return err
		}
	}
	if err := errors.Join(l.makeSwitches(), l.makeNATS()); err != nil {
		return err
	}
	l.say("networks are up; starting etcd, nats-server and kube-apiserver")
	g, started := errgroup.WithContext(ctx)
	g.Go(func() error { return l.startControl(started) })
	g.Go(func() error { return l.StartNATS(started) })
	g.Go(func() error { return errors.Join(l.makeGateways(), l.startServers()) })
	if err := g.Wait(); err != nil {
		return err
	}
	l.say("control plane is up after %.1f s", time.Since(began).Seconds())
	if err := l.applyManifests(ctx); err != nil {
		return err
	}
	if err := l.startControllerManager(); err != nil {
		return err
	}
	for _, name := range l.opts.Nodes {
		if _, err := l.AddNode(ctx, NodeSpec{Name: name}); err != nil {
			return err
		}
	}
	if err := l.startStandin(ctx); err != nil {
		return err
	}
	l.say("lab %s is up after %.1f s; logs and state in %s", l.opts.Name, time.Since(began).Seconds(), l.opts.Dir)
	return nil
}

func (l *Lab) startControl(ctx context.Context) error {
	var err error
	if l.authority, err = l.writeKeys(); err != nil {
		return err
	}
	if err := l.writeKubeconfig(l.Kubeconfig(), adminToken, l.authority); err != nil {
		return err
	}
	if err := l.writeKubeconfig(l.path("cluster-agent.kubeconfig"), agentToken, l.authority); err != nil {
		return err
	}
	if l.kube, err = kubernetes.NewForConfig(l.RESTConfig()); err != nil {
		return fmt.Errorf("make Kubernetes client: %w", err)
	}
	if l.dynamic, err = dynamic.NewForConfig(l.RESTConfig()); err != nil {
		return fmt.Errorf("make Kubernetes client: %w", err)
	}
	if err := l.StartEtcd(ctx); err != nil {
		return err
	}
	return l.StartAPIServer(ctx)
}

// makeSwitches builds the three networks with all that is not a machine.
func (l *Lab) makeSwitches() error {
	switches := []struct {
		part  Part
		addrs []string
		addr6 string
	}{
		{PartInternal, []string{cidr(LANHost, internalBits)}, cidr(LANHost6, bits6)},
		{PartExternal, []string{cidr(Server, externalBits)}, cidr(Server6, bits6)},
		{PartControl, l.controlAddrs(), ""},
	}
	for _, s := range switches {
		if err := l.makePart(s.part); err != nil {
			return err
		}
		// A port has no IPv6 address of its own, so it sends nothing by itself.
		err := namespace.Sysctl(l.Namespace(s.part), [2]string{"ipv6/conf/default/disable_ipv6", "1"}, [2]string{"ipv4/ip_forward", "0"})
		if err != nil {
			return err
		}
		if err := l.makeBridge(s.part, bridge, s.addrs...); err != nil {
			return err
		}
		if l.opts.DualStack && s.addr6 != "" {
			if err := l.addBridge6(s.part, s.addr6); err != nil {
				return err
			}
		}
	}
	h, err := l.netlink(PartExternal)
	if err != nil {
		return err
	}
	if err := configure(h, "lo", l.dual([]string{cidr(ServerFar, 32)}, cidr(ServerFar6, 128))...); err != nil {
		return err
	}
	// The server answers leaked addresses too, and may try to reach pods: what
	// must not work shall fail because of the gateway, not for want of a route.
	for _, network := range l.dual([]string{PodNetworks, InternalNetwork}, PodNetworks6, InternalNetwork6) {
		gateway := GatewayExternal
		if netip.MustParsePrefix(network).Addr().Is6() {
			gateway = GatewayExternal6
		}
		if err := l.addRoute(PartExternal, network, gateway, bridge); err != nil {
			return err
		}
	}
	return nil
}

// Down removes the lab: processes, namespaces, sockets. Logs and state stay in
// its directory. A second call does nothing.
func (l *Lab) Down() error {
	return errors.Join(l.Close(), DownByName(l.opts.Name))
}

// Close ends what runs inside this program and lets go of the lab. A detached
// lab goes on; any other is of no use afterwards but to Down.
func (l *Lab) Close() error {
	err := l.inside.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for part, h := range l.handles {
		h.Close()
		delete(l.handles, part)
	}
	l.spawner.close()
	return err
}

// Name returns the lab's name.
func (l *Lab) Name() string { return l.opts.Name }

// Dir returns the directory with the lab's logs (log/) and state.
func (l *Lab) Dir() string { return l.opts.Dir }

// Kube returns a client of the API server with all rights.
func (l *Lab) Kube() kubernetes.Interface { return l.kube }

// Dynamic returns the same for any kind of object.
func (l *Lab) Dynamic() dynamic.Interface { return l.dynamic }

// Process returns the last process started under a name, which may have ended,
// or nil.
func (l *Lab) Process(name string) *Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.processes[name]
}

func (l *Lab) processesIn(part Part) []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*Process
	for _, p := range l.processes {
		if p.Part == part {
			found = append(found, p)
		}
	}
	return found
}

func (l *Lab) path(parts ...string) string {
	return filepath.Join(append([]string{l.opts.Dir}, parts...)...)
}

// empty makes a directory below the lab's, without content. Logs of the lab
// that was there before go too.
func (l *Lab) empty(dir string) error {
	if err := os.RemoveAll(l.path(dir)); err != nil {
		return fmt.Errorf("empty %s: %w", dir, err)
	}
	if err := os.MkdirAll(l.path(dir), 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return nil
}

func (l *Lab) say(format string, args ...any) {
	fmt.Fprintf(l.opts.Log, "lab: "+format+"\n", args...)
}
