// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"slices"
	"testing"
)

// TestEmbeddedNATS is the main job with one container on the VM: NATS runs
// inside gateway-agent.
func TestEmbeddedNATS(t *testing.T) {
	w := newWorld(t)
	w.vm.docker(slices.Concat([]string{"run", "-d", "--name", "gateway-agent", "--health-interval", "1s", "--restart", "unless-stopped"}, flat(w.gatewayFlags()),
		[]string{"-e", "GATEWAY_NATS_EMBEDDED=true", "-v", w.secrets + "/nats:/etc/nats:ro", image("gateway-agent")})...)
	w.setupNATS()
	w.startClusterAgent()
	w.healthy("gateway-agent")
	blue, pods := w.mainJob()

	tr := w.startTraffic(blue, pods)
	w.killContainer("gateway-agent")
	tr.goesOn(50)
	w.healthy("gateway-agent")
	tr.unharmed("kill -9 of the one container")
}
