// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestSystemdUnit has systemd read the unit of the bare binary.
func TestSystemdUnit(t *testing.T) {
	unit, err := os.ReadFile(filepath.Join(root, "deploy/vm/gateway-agent.service"))
	if err != nil {
		t.Fatal(err)
	}
	binary, err := filepath.Abs(filepath.Join(root, "build/bin/gateway-agent"))
	if err != nil {
		t.Fatal(err)
	}
	// systemd-analyze wants the program to be there.
	file := filepath.Join(t.TempDir(), "gateway-agent.service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(unit), "/usr/local/bin/gateway-agent", binary)), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "verify", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), file) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// quadletFlags are the flags of docker run that the keys of a quadlet unit stand
// for (podman-systemd.unit(5)). Keys that docker has no counterpart of, or that
// only matter to SELinux, are empty.
var quadletFlags = map[string]string{
	"Network": "--network", "DropCapability": "--cap-drop", "AddCapability": "--cap-add", "ReadOnly": "--read-only", "NoNewPrivileges": "--security-opt=no-new-privileges:true",
	"Volume": "-v", "EnvironmentFile": "--env-file", "ContainerName": "--name", "HealthCmd": "--health-cmd", "HealthInterval": "--health-interval",
	"HealthTimeout": "--health-timeout", "HealthStartPeriod": "--health-start-period", "HealthRetries": "--health-retries",
	"Image": "", "SecurityLabelDisable": "", "LogDriver": "",
}

// quadlet translates the [Container] section of a unit.
func quadlet(t *testing.T, unit string) (flags []string) {
	t.Helper()
	section := ""
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			section = line
			continue
		case section != "[Container]" || line == "" || line[0] == '#':
			continue
		}
		flag, known := quadletFlags[key]
		switch {
		case !ok || !known:
			t.Fatalf("the unit has %q, which this test does not know", line)
		case flag == "":
		case value == "true":
			flags = append(flags, flag)
		case key == "AddCapability":
			for v := range strings.FieldsSeq(value) {
				flags = append(flags, flag, v)
			}
		default:
			flags = append(flags, flag, value)
		}
	}
	return flags
}

// runQuadlet starts gateway-agent with the flags of the quadlet unit, by docker:
// Debian 12 has no podman that knows quadlets.
func runQuadlet(w *world) {
	w.t.Helper()
	unit, err := os.ReadFile(filepath.Join(root, "deploy/vm/gateway-agent.container"))
	w.must(err)
	flags := quadlet(w.t, string(unit))
	for i, f := range flags {
		f = strings.ReplaceAll(f, "/etc/egress-gateway/nats:/", w.secrets+"/gateways/gw1:/")
		f = strings.ReplaceAll(f, "/etc/egress-gateway/nats/gateway.env", w.secrets+"/gateways/gw1/gateway.env")
		flags[i] = strings.ReplaceAll(f, "/etc/egress-gateway/gateway-agent.env", "deploy/vm/gateway-agent.env")
	}
	w.vm.docker(slices.Concat([]string{"run", "-d"}, flags, []string{image("gateway-agent")})...)
	w.healthy("gateway-agent")
	w.vm.docker("rm", "-f", "gateway-agent")
}
