// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"egress-gateway.io/shared/tenant"
	"egress-gateway.io/test/lab/namespace"
)

const cluster = "bench"

// memory is the part of gateway-agent's disk copy that the bench writes.
type memory struct {
	Clusters map[string]clusterMemory `json:"clusters"`
}

type clusterMemory struct {
	Generation int64                  `json:"generation"`
	Network    tenant.Network         `json:"network"`
	Tenants    map[string]entry       `json:"tenants"`
	Nodes      map[string]tenant.Node `json:"nodes"`
}

type entry struct {
	Number int           `json:"number"`
	Record tenant.Tenant `json:"record"`
}

// record is tenant i's record as the cluster would publish it.
func (g gateway) record(i int) tenant.Tenant {
	name := fmt.Sprintf("tenant-%04d", i)
	return tenant.Tenant{
		Schema: tenant.Schema, Cluster: cluster, Name: name, UID: "uid-" + name, Generation: 1, Namespaces: []string{name},
		Pool: "bench", Group: "default", GatewayIPs: g.gatewayIPs(i), EgressIPs: g.egressIPs(i),
	}
}

// gatewayIPs and egressIPs are those of tenant i in all its families.
func (g gateway) gatewayIPs(i int) (list []netip.Addr) {
	for _, f := range g.families {
		list = append(list, g.in(f).gatewayIP(i))
	}
	return list
}

func (g gateway) egressIPs(i int) (list []netip.Addr) {
	for _, f := range g.families {
		list = append(list, g.in(f).egressIP(i))
	}
	return list
}

func nodeRecord(families []tenant.Family) tenant.Node {
	n := tenant.Node{Schema: tenant.Schema, Cluster: cluster, Name: "node1"}
	for _, f := range families {
		n.Subnets, n.Addresses = append(n.Subnets, prefixIn(f, pods)), append(n.Addresses, addressIn(f, nodeAddress))
	}
	return n
}

func networkRecord(families []tenant.Family) tenant.Network {
	n := tenant.Network{Schema: tenant.Schema, Cluster: cluster}
	for _, f := range families {
		n.PodNetworks = append(n.PodNetworks, prefixIn(f, podNetwork))
	}
	return n
}

// writeState writes a disk copy of n tenants, so that gateway-agent needs
// nobody to program them.
func (g gateway) writeState(dir string, n int) error {
	tenants := make(map[string]entry, n)
	for i := range n {
		r := g.record(i)
		tenants[r.Name] = entry{i + 1, r}
	}
	state, err := json.Marshal(memory{map[string]clusterMemory{cluster: {
		Generation: 1, Network: networkRecord(g.families), Tenants: tenants, Nodes: map[string]tenant.Node{"node1": nodeRecord(g.families)},
	}}})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(state)
	file, err := json.Marshal(map[string]any{"schema": 1, "sha256": hex.EncodeToString(sum[:]), "state": json.RawMessage(state)})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "state.json"), file, 0o600)
}

// pathFor returns a PATH on which iptables is that of a backend, by links in dir.
func pathFor(backend, dir string) (string, error) {
	path := os.Getenv("PATH")
	if backend == "" {
		return path, nil
	}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"", "-save", "-restore"} {
			program, err := exec.LookPath(family + "-" + backend + what)
			if err != nil {
				return "", err
			}
			if err := os.Symlink(program, filepath.Join(dir, family+what)); err != nil {
				return "", err
			}
		}
	}
	return dir + ":" + path, nil
}

// agent is a gateway-agent that runs in a gateway's namespace.
type agent struct {
	cmd  *exec.Cmd
	log  string
	done chan error
}

// startAgent starts the real program, with more settings if there are any.
// Without url it reaches no NATS, and serves what its disk says.
func (g gateway) startAgent(binary, dir, url string, settings ...string) (*agent, error) {
	if url == "" {
		url = "nats://127.0.0.1:9" // discard: nobody answers
	}
	path := filepath.Join(dir, "agent.log")
	log, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// `ip netns exec` replaces itself by the program.
	cmd := exec.Command("ip", "netns", "exec", g.ns, binary)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GATEWAY_NAME=bench", "GATEWAY_STATE_DIR=" + dir, "GATEWAY_NATS_URL=" + url, "GATEWAY_NATS_ALLOW_INSECURE_PLAINTEXT_FOR_LAB=true",
		"GATEWAY_INTERNAL_INTERFACE=" + internalNIC, "GATEWAY_EXTERNAL_INTERFACE=" + externalNIC}
	cmd.Env = append(cmd.Env, settings...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	a := &agent{cmd: cmd, log: path, done: make(chan error, 1)}
	go func() { a.done <- cmd.Wait() }()
	return a, nil
}

// restart ends a and starts the program again in its place, with other settings.
func (g gateway) restart(a *agent, binary, dir, url string, settings ...string) error {
	if err := a.stop(); err != nil {
		return err
	}
	next, err := g.startAgent(binary, dir, url, settings...)
	if err == nil {
		*a = *next
	}
	return err
}

// stop ends the agent and waits for it; what it programmed stays.
func (a *agent) stop() error {
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return <-a.done
}

// holds tells whether the gateway has an address: only then one can listen on it.
func (g gateway) holds(a netip.Addr) (there bool, err error) {
	err = namespace.Do(g.ns, func() error {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil
		}
		if err == nil {
			there, err = true, c.Close()
		}
		return err
	})
	return there, err
}

// programmed waits until the gateway serves n tenants: the agent makes gateway
// IPs last, and the last tenant's after all others.
func (g gateway) programmed(ctx context.Context, a *agent, n int) error {
	return g.untilAll(ctx, a, g.gatewayIPs(n-1), true)
}

// untilAll waits for addresses of the gateway to come or to go.
func (g gateway) untilAll(ctx context.Context, a *agent, ips []netip.Addr, come bool) error {
	for _, ip := range ips {
		if err := g.until(ctx, a, ip, come); err != nil {
			return err
		}
	}
	return nil
}

// until waits for an address of the gateway to come or to go.
func (g gateway) until(ctx context.Context, a *agent, ip netip.Addr, come bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		there, err := g.holds(ip)
		if err != nil || there == come {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), fmt.Errorf("gateway-agent did not program %s; its log is %s", ip, a.log))
		case err := <-a.done:
			return fmt.Errorf("gateway-agent ended: %w; its log is %s", err, a.log)
		case <-tick.C:
		}
	}
}

// programOurs has the real agent program the gateway's tenants.
func (t *topology) programOurs(ctx context.Context, binary, dir, backend string) (err error) {
	g := t.gateway(Ours)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := g.writeState(dir, t.tenants); err != nil {
		return err
	}
	path, err := pathFor(backend, dir)
	if err != nil {
		return err
	}
	a, err := g.startAgent(binary, dir, "", "PATH="+path)
	if err != nil {
		return err
	}
	if err := g.programmed(ctx, a, t.tenants); err != nil {
		return err
	}
	// It would announce addresses and look for changes while others are measured.
	return a.stop()
}
