// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

// TestPages runs docs/quickstart.md, docs/operations.md and docs/one-vm.md, word
// for word, on two gateway VMs and a cluster that have nothing yet. What the pages say of
// traffic is held against traffic.
func TestPages(t *testing.T) {
	p := newPages(t)
	p.run("quickstart.md")

	blue := p.w.await("ns-blue")
	traffic := p.w.startTraffic(blue, []*lab.Pod{p.pod()})
	p.run("operations.md")
	traffic.goesOn(50)
	traffic.unharmed("all of operations.md")

	p.run("one-vm.md") // on vm2, which operations.md has put out of service
}

// pages is where the commands of the pages are run.
type pages struct {
	w     *world
	hosts map[string]*machine
	blue  *lab.Pod
}

// pageTimeout bounds each block; some wait for a condition themselves.
const pageTimeout = 3 * time.Minute

func newPages(t *testing.T) *pages {
	t.Helper()
	tar := imagesTar(t)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	bin, err := filepath.Abs(root + "/build/bin")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Up(ctx, lab.Options{
		Name: fmt.Sprintf("pg%d", os.Getpid()), Dir: filepath.Join(t.TempDir(), "lab"), BinDir: bin,
		SecondGateway: true, NATS: lab.NATSEmbedded, // that is, the lab starts none: it is on a VM
		ClusterAgentUser: "system:serviceaccount:egress-gateway:cluster-agent",
	})
	if err != nil {
		t.Fatalf("bring up the lab (make build lab-bin builds what it needs): %v", err)
	}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("take down the lab: %v", err)
		}
	})
	cluster, err := scenario.Connect(l.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{World: &scenario.World{Lab: l, Cluster: cluster}, t: t, ctx: ctx, allowed: map[netip.Addr]bool{}}
	for _, a := range []string{"192.168.55.113", "192.168.55.121"} {
		w.allowed[netip.MustParseAddr(a)] = true
	}
	w.watchWire()

	p := &pages{w: w, hosts: map[string]*machine{}}
	p.hosts["vm1"] = newMachine(w, lab.PartGateway, tar)
	p.hosts["vm2"] = newMachine(w, lab.PartGateway2, tar)
	p.hosts["admin"] = newAdmin(w, bin, p.hosts)
	kubelet := &kubelet{w: w}
	kubelet.start()
	return p
}

// run runs the commands of a page, each block in a shell of its own that ends
// with the first command that fails.
func (p *pages) run(page string) {
	p.w.t.Helper()
	f, err := os.Open(filepath.Join(root, "docs", page))
	p.w.must(err)
	defer f.Close()
	blocks, err := parsePage(f, "build", "admin", "vm1", "vm2", "pod")
	p.w.must(err)
	for _, b := range blocks {
		began := time.Now()
		out, err := p.runBlock(b)
		p.w.t.Logf("%s:%d on %s: %.1f s", page, b.line, b.host, time.Since(began).Seconds())
		if err != nil {
			p.w.t.Fatalf("%s: line %d, on %s: %v\n%s\nprinted\n%s", page, b.line, b.host, err, b.commands, out)
		}
		if err := b.check(out); err != nil {
			p.w.t.Fatalf("%s: %v", page, err)
		}
	}
}

func (p *pages) runBlock(b block) (string, error) {
	switch b.host {
	case "build":
		// The images are those that TestImages had built by this command.
		if b.commands != "make build images\n" {
			return "", fmt.Errorf("the test knows no other command for building")
		}
		return "", nil
	case "pod":
		ctx, cancel := context.WithTimeout(p.w.ctx, pageTimeout)
		defer cancel()
		argv := []string{"nsenter", "--net=/run/netns/" + p.w.Namespace(p.pod().Part), "sh", "-euc", b.commands}
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		return string(out), err
	default:
		return p.hosts[b.host].shell(b.commands)
	}
}

// pod returns the pod of ns-blue, which is made when it is first asked for.
func (p *pages) pod() *lab.Pod {
	if p.blue == nil {
		pod, err := p.w.AddPod(p.w.ctx, "node1", "ns-blue")
		p.w.must(err)
		p.blue = pod
		p.w.must(scenario.WaitSeenAs(p.w.ctx, pod, netip.MustParseAddr("192.168.55.113"), soon))
	}
	return p.blue
}

// await returns a tenant that is there.
func (w *world) await(name string) scenario.Tenant {
	w.t.Helper()
	tenant, err := w.WaitReady(w.ctx, name, soon)
	w.must(err)
	return tenant
}

// machine is a host with files of its own below /etc and in its home.
type machine struct {
	w      *world
	dir    string
	prefix []string // of each command: enters the machine
	env    []string
}

// newMachine makes a VM of a part of the lab, with a docker engine that has the
// images, as `latest` and as a later version.
func newMachine(w *world, part lab.Part, tar string) *machine {
	w.t.Helper()
	m := &machine{w: w, dir: w.t.TempDir()}
	for _, d := range []string{"etc", "root"} {
		w.must(os.Mkdir(filepath.Join(m.dir, d), 0o755))
	}
	out, err := exec.Command("cp", "-a", "/etc/.", filepath.Join(m.dir, "etc")).CombinedOutput()
	if err != nil {
		w.t.Fatalf("copy /etc: %v: %s", err, out)
	}
	// It holds the mount namespace in which /etc is the machine's.
	holder := exec.Command("nsenter", "--net=/run/netns/"+w.Namespace(part), "unshare", "--mount", "--propagation", "private",
		"sh", "-c", `mount --bind "$0" /etc && echo && exec sleep infinity`, filepath.Join(m.dir, "etc"))
	ready, err := holder.StdoutPipe()
	w.must(err)
	w.must(holder.Start())
	w.t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		w.t.Fatalf("make the machine %s: %v", part, err)
	}
	m.prefix = []string{"nsenter", "--net=/run/netns/" + w.Namespace(part), fmt.Sprintf("--mount=/proc/%d/ns/mnt", holder.Process.Pid), "--wd=" + filepath.Join(m.dir, "root")}

	vm := startEngine(w.t, m.prefix)
	m.env = vm.environ()
	vm.docker("load", "-i", tar)
	for _, name := range []string{"gateway-agent", "nats"} {
		for _, tag := range []string{"latest", "v2"} {
			vm.docker("tag", image(name), "egress-gateway/"+name+":"+tag)
		}
	}
	return m
}

// newAdmin makes the machine of the person who installs: in the network of the
// cluster's API server, with a checkout, kubectl, egressctl, ssh and scp. The
// last two know the VMs, and copy between directories.
func newAdmin(w *world, bin string, vms map[string]*machine) *machine {
	w.t.Helper()
	m := &machine{w: w, dir: w.t.TempDir()}
	home, tools := filepath.Join(m.dir, "root"), filepath.Join(m.dir, "bin")
	w.must(os.Mkdir(home, 0o700))
	w.must(os.Mkdir(tools, 0o755))
	checkout, err := filepath.Abs(root)
	w.must(err)
	w.must(os.Symlink(filepath.Join(checkout, "deploy"), filepath.Join(home, "deploy")))
	w.must(os.Symlink(filepath.Join(checkout, "docker-compose.yaml"), filepath.Join(home, "docker-compose.yaml")))
	var ssh, scp bytes.Buffer
	ssh.WriteString("#!/bin/sh\nset -eu\nto=${1#root@}; shift\ncase $to in\n")
	scp.WriteString("#!/bin/sh\nset -eu\nfor to; do :; done\nto=${to#root@}\ncase ${to%%:*} in\n")
	for name, vm := range vms {
		fmt.Fprintf(&ssh, "%s) exec %s env %s sh -c \"$*\" ;;\n", name, quoted(vm.prefix...), quoted(vm.env[len(os.Environ()):]...))
		fmt.Fprintf(&scp, "%s) to=%s${to#*:} ;;\n", name, quoted(vm.dir))
	}
	ssh.WriteString("*) echo \"ssh: no host $to\" >&2; exit 255 ;;\nesac\n")
	scp.WriteString("*) echo \"scp: no host $to\" >&2; exit 255 ;;\nesac\nwhile [ $# -gt 1 ]; do\n\tcase $1 in -*) ;; *) cp -rL \"$1\" \"$to\" ;; esac\n\tshift\ndone\n")
	w.must(os.WriteFile(filepath.Join(tools, "ssh"), ssh.Bytes(), 0o755))
	w.must(os.WriteFile(filepath.Join(tools, "scp"), scp.Bytes(), 0o755))
	m.prefix = []string{"nsenter", "--net=/run/netns/" + w.Namespace(lab.PartControl), "--wd=" + home}
	m.env = append(os.Environ(), "KUBECONFIG="+w.Kubeconfig(), "HOME="+home, "PATH="+bin+":"+tools+":"+os.Getenv("PATH"))
	return m
}

// shell runs commands until one fails and returns what they printed.
func (m *machine) shell(commands string) (string, error) {
	ctx, cancel := context.WithTimeout(m.w.ctx, pageTimeout)
	defer cancel()
	argv := append(append([]string{}, m.prefix...), "bash", "-euo", "pipefail", "-c", commands)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.WaitDelay = m.env, 5*time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}
