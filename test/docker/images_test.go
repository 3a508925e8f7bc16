// SPDX-License-Identifier: Apache-2.0

// Package docker proves the images, and what the documents say of `docker run`
// and of docker-compose.yaml: with a docker engine of its own, in the network
// namespace of a lab's gateway VM, and with the images as `make images` builds
// them.
package docker

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// root is the checkout.
const root = "../.."

// What the test stamps into the images. The version is also their tag.
const (
	version = "v0.0.0-test"
	commit  = "0123456789abcdef0123456789abcdef01234567"
	date    = "2026-01-02T03:04:05Z"
)

// limits are the largest sizes that we accept, in MB.
var limits = map[string]int{"gateway-agent": 110, "cluster-agent": 60, "egressctl": 60, "nats": 60}

func image(name string) string { return "egress-gateway/" + name + ":" + version }

// TestImages looks at the images.
func TestImages(t *testing.T) {
	tar := imagesTar(t)
	e := startEngine(t, nil, offTheNetwork...)
	e.docker("load", "-i", tar)

	t.Run("size", func(t *testing.T) {
		for name, limit := range limits {
			var size int
			if _, err := fmt.Sscan(e.docker("image", "inspect", "-f", "{{.Size}}", image(name)), &size); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %.1f MB, at most %d", name, float64(size)/1e6, limit)
			if size > limit*1e6 {
				t.Errorf("%s has %d bytes, want at most %d MB", name, size, limit)
			}
		}
	})
	t.Run("labels", func(t *testing.T) {
		for name := range limits {
			var labels map[string]string
			if err := json.Unmarshal([]byte(e.docker("image", "inspect", "-f", "{{json .Config.Labels}}", image(name))), &labels); err != nil {
				t.Fatal(err)
			}
			for label, want := range map[string]string{"title": name, "version": version, "revision": commit, "created": date, "licenses": "Apache-2.0"} {
				if got := labels["org.opencontainers.image."+label]; got != want {
					t.Errorf("%s: label %s is %q, want %q", name, label, got, want)
				}
			}
			if labels["org.opencontainers.image.description"] == "" {
				t.Errorf("%s has no description", name)
			}
		}
	})
	t.Run("what they are", func(t *testing.T) {
		for name, want := range map[string]string{"gateway-agent": " [/gateway-agent]", "cluster-agent": "65532:65532 [/cluster-agent]", "egressctl": "65532:65532 [/egressctl]", "nats": " [/nats-server]"} {
			if got := e.docker("image", "inspect", "-f", "{{.Config.User}} {{.Config.Entrypoint}}", image(name)); got != strings.TrimSpace(want) {
				t.Errorf("%s: user and entry point are %q, want %q", name, got, want)
			}
		}
		for name, want := range map[string]string{"gateway-agent": "gateway-agent " + version, "cluster-agent": "cluster-agent " + version, "egressctl": "egressctl " + version, "nats": "nats-server: v2."} {
			got := e.docker("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", image(name), "--version")
			if !strings.HasPrefix(got, want) {
				t.Errorf("%s --version says %q, want %q", name, got, want)
			}
			if name != "nats" && (!strings.Contains(got, commit) || !strings.Contains(got, date)) {
				t.Errorf("%s --version says %q, without commit or date", name, got)
			}
		}
	})
	t.Run("tools", func(t *testing.T) {
		for _, line := range []string{"iptables-nft --version", "iptables-legacy --version", "ip6tables-nft --version", "nft --version", "ip -V", "ipset --help", "gateway-agent --help"} {
			e.docker("run", "--rm", "--network", "none", "--read-only", "--entrypoint", "sh", image("gateway-agent"), "-c", line)
		}
	})
}
