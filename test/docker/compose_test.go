// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"cmp"
	"os"
	"testing"

	"egress-gateway.io/test/scenario"
)

// project is docker-compose.yaml, with the settings of the lab's gateway VM.
type project struct {
	w   *world
	env []string
}

func (w *world) project() *project {
	return &project{w, []string{
		"EGRESS_DIR=" + w.secrets, "EGRESS_VERSION=" + version, "GATEWAY_NAME=gw1", "GATEWAY_INTERNAL_INTERFACE=enp1s0", "GATEWAY_EXTERNAL_INTERFACE=enp7s0",
		"CLUSTER_NAME=lab", "CLUSTER_NATS_URL=" + natsURL, "KUBECONFIG=" + w.Kubeconfig(),
	}}
}

// composeProgram is docker-compose; DOCKER_COMPOSE names another one, such as
// compose v2, which no package of Debian 12 has.
func composeProgram() string { return cmp.Or(os.Getenv("DOCKER_COMPOSE"), "docker-compose") }

// run runs docker-compose, with further settings.
func (p *project) run(env []string, args ...string) {
	p.w.t.Helper()
	cmd := p.w.vm.command(p.w.ctx, append([]string{composeProgram(), "-p", "egw"}, args...)...)
	cmd.Env = append(append(cmd.Env, p.env...), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.w.t.Fatalf("docker-compose %v: %v\n%s", args, err, out)
	}
}

// TestCompose is the main job with everything as containers of
// docker-compose.yaml, the cluster-agent of its profile among them; then an
// upgrade, a stop and a removal under traffic.
func TestCompose(t *testing.T) {
	w := newWorld(t)
	p := w.project()
	p.run(nil, "up", "-d", "nats")
	w.healthy("nats")
	w.setupNATS()
	p.run(nil, "--profile", "cluster-agent", "up", "-d")
	for _, name := range []string{"nats", "gateway-agent", "cluster-agent"} {
		w.healthy(name)
	}
	blue, pods := w.mainJob()

	w.build("egress-gateway/gateway-agent:next")
	tr := w.startTraffic(blue, pods)
	w.vm.docker("tag", image("nats"), "egress-gateway/nats:next")
	p.run([]string{"EGRESS_VERSION=next"}, "up", "-d")
	w.healthy("nats")
	w.healthy("gateway-agent")
	if got := w.vm.docker("inspect", "-f", "{{.Config.Image}}", "gateway-agent"); got != "egress-gateway/gateway-agent:next" {
		t.Errorf("after the upgrade, the image is %s", got)
	}
	tr.goesOn(50)
	p.run(nil, "stop")
	tr.goesOn(50)
	p.run(nil, "--profile", "cluster-agent", "down")
	tr.goesOn(50)
	tr.unharmed("upgrade, stop and down by docker-compose")
	for _, pod := range pods {
		w.must(scenario.WaitSeenAs(w.ctx, pod, blue.EgressIP(), soon))
	}
}
