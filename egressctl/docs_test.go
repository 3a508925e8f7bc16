// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// The commands of docs/nats.md are run in the order in which they stand, by
// bash, in a machine of their own as far as they can see: mounts, processes and
// network are private, so that paths and ports are those of the page.
func TestCommandsOfTheDocumentation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes namespaces")
	}
	page, err := os.ReadFile("../docs/nats.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "bin", "egressctl"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	binaries, err := filepath.Abs("../build/bin")
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -eu
cd %s
mkdir etc lib work
mount --bind lib /var/lib
cp /etc/passwd /etc/nsswitch.conf etc/ 2>/dev/null || true
echo "127.0.0.1 localhost nats.example" > etc/hosts
mount --bind etc /etc
ip link set lo up
cd work
PATH=%s:%s:$PATH
set -x
`, dir, filepath.Join(dir, "bin"), binaries)
	commands := 0
	for _, block := range shellBlock.FindAllSubmatch(page, -1) {
		for line := range strings.Lines(string(block[1])) {
			commands++
			script += line
			// A person takes longer than NATS.
			switch {
			case strings.HasPrefix(line, "nats-server --config"):
				script += "for i in $(seq 300); do (exec 3<>/dev/tcp/127.0.0.1/4222) 2>/dev/null && break; sleep 0.1; done\n"
			case strings.HasPrefix(line, "nats-server --signal stop"):
				script += "wait\n"
			}
		}
	}
	if commands < 20 {
		t.Fatalf("the page has %d commands; are its blocks still marked sh?", commands)
	}
	expect(t, runAlone(t, script),
		"wrote nats/nats.conf", "stream EGRESS_AUDIT created", "\nbucket egress-status created\n+ egressctl audit", "0 events of 0 processes", "wrote gateways/gw3/gateway.env",
		"wrote gateways/gw1/client.nk", "ca/ca.crt", "is up to date; nothing was changed",
	)
}

// runAlone runs a script in a machine of its own as far as it can see, and
// returns what it printed. A script that fails fails the test.
func runAlone(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func expect(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}
