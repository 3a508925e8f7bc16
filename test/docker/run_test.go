// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"egress-gateway.io/test/scenario"
)

// natsFlags start NATS as docs/gateway-agent.md says.
func (w *world) natsFlags() []string {
	return []string{"run", "-d", "--name", "nats", "--health-interval", "1s", "--restart", "unless-stopped", "--network", "host", "--read-only", "--cap-drop", "ALL",
		"-v", w.secrets + "/nats:/etc/nats:ro", "-v", "nats:/var/lib/nats", image("nats")}
}

// gatewayFlags are the flags of `docker run` for gateway-agent, in the order of
// the documents, grouped so that a test can leave one out.
func (w *world) gatewayFlags() [][]string {
	return [][]string{
		{"--network", "host"},
		{"--cap-drop", "ALL"},
		{"--cap-add", "NET_ADMIN"},
		{"--cap-add", "NET_RAW"},
		{"--read-only"},
		{"-v", "/proc/sys/net:/host/proc/sys/net"},
		{"-v", "egress-gateway:/var/lib/egress-gateway"},
		{"-v", w.secrets + "/gateways/gw1:/etc/egress-gateway/nats:ro"},
		{"--env-file", w.secrets + "/gateways/gw1/gateway.env"},
		{"-e", "GATEWAY_INTERNAL_INTERFACE=enp1s0"},
		{"-e", "GATEWAY_EXTERNAL_INTERFACE=enp7s0"},
	}
}

func flat(groups [][]string) (all []string) {
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

// runGateway starts a container of gateway-agent and waits until it is healthy.
func (w *world) runGateway(name, image string) {
	w.t.Helper()
	w.vm.docker(append(append([]string{"run", "-d", "--name", name, "--health-interval", "1s", "--restart", "unless-stopped"}, flat(w.gatewayFlags())...), image)...)
	w.healthy(name)
}

// TestDockerRun is the main job with NATS and gateway-agent as containers, and
// then everything that happens to a container, under traffic.
func TestDockerRun(t *testing.T) {
	w := newWorld(t)
	missingFlags(w)
	w.vm.docker(w.natsFlags()...)
	w.healthy("nats")
	w.setupNATS()
	w.startClusterAgent()
	w.runGateway("gateway-agent", image("gateway-agent"))
	blue, pods := w.mainJob()

	status := w.vm.docker("exec", "gateway-agent", "gateway-agent", "status")
	if !strings.Contains(status, "lab/ns-blue") {
		t.Errorf("gateway-agent status, by docker exec:\n%s", status)
	}

	// The container of a new image takes the old one's place.
	next := "egress-gateway/gateway-agent:next"
	w.build(next)
	tr := w.startTraffic(blue, pods)
	w.vm.docker("stop", "gateway-agent")
	tr.goesOn(50)
	w.vm.docker("rm", "gateway-agent")
	w.runGateway("gateway-agent", next)
	tr.goesOn(50)
	tr.unharmed("upgrade")
	w.must(scenario.WaitSeenAs(w.ctx, pods[0], blue.EgressIP(), soon))

	tr = w.startTraffic(blue, pods)
	w.killContainer("gateway-agent")
	tr.goesOn(50)
	w.healthy("gateway-agent")
	tr.unharmed("kill -9 of the container")

	// Both gone: traffic goes on, and the pods of a tenant are still seen right.
	tr = w.startTraffic(blue, pods)
	w.vm.docker("stop", "gateway-agent", "nats")
	tr.goesOn(50)
	for _, p := range pods {
		w.must(scenario.WaitSeenAs(w.ctx, p, blue.EgressIP(), soon))
	}
	w.vm.docker("start", "nats", "gateway-agent")
	w.healthy("nats")
	w.healthy("gateway-agent")
	tr.unharmed("docker stop of everything")

	w.vm.docker("rm", "-f", "gateway-agent")
	runQuadlet(w)

	// What the VM held goes by an explicit command only.
	w.vm.docker(append(append([]string{"run", "--rm"}, flat(w.gatewayFlags())...), image("gateway-agent"), "cleanup")...)
	state, err := w.Gateway()
	w.must(err)
	if left := append(state.Mentions(blue.EgressIP().String()), state.Mentions(blue.GatewayIP().String())...); len(left) > 0 {
		t.Errorf("left after cleanup: %v", left)
	}
}

// killContainer kills the process of a container, and waits until docker has
// started it again, as the restart policy wants.
func (w *world) killContainer(name string) {
	w.t.Helper()
	pid, err := strconv.Atoi(w.vm.docker("inspect", "-f", "{{.State.Pid}}", name))
	w.must(err)
	w.must(unix.Kill(pid, unix.SIGKILL))
	w.until("docker to start "+name+" again", func() (bool, error) {
		now := w.vm.docker("inspect", "-f", "{{.State.Running}} {{.State.Pid}}", name)
		return strings.HasPrefix(now, "true ") && now != fmt.Sprint("true ", pid), nil
	})
}

// build makes an image that differs from the present gateway-agent's.
func (w *world) build(tag string) {
	w.t.Helper()
	cmd := w.vm.command(w.ctx, "docker", "build", "--network", "none", "-t", tag, "-")
	cmd.Stdin = strings.NewReader("FROM " + image("gateway-agent") + "\nENV NEXT=1\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}
