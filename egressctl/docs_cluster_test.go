// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// clusterMachines are a gateway VM, in which the commands run, and three servers
// with a network, mounts and processes of their own, which take commands from
// pipes. `on NAME` runs its input on one of them.
const clusterMachines = `set -eu
cd $DIR
private() { # a machine's own /etc and /var/lib
	mkdir -p $DIR/$1/etc $DIR/$1/lib
	cp -a /etc/passwd /etc/nsswitch.conf /etc/alternatives $DIR/$1/etc/ 2>/dev/null || true
	echo "127.0.0.1 localhost" > $DIR/$1/etc/hosts
	mount --bind $DIR/$1/lib /var/lib
	mount --bind $DIR/$1/etc /etc
}
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys
ip link set lo up
ip link add br0 type bridge && ip link set br0 up
plug() { # NIC, its peer in the switch
	ip link add $1 type veth peer name $2
	ip link set $2 master br0 up
}
plug enp1s0 p1 && ip addr add 192.0.2.11/24 dev enp1s0 && ip link set enp1s0 up
ip link add enp7s0 type veth peer name p7 && ip link set p7 up && ip link set enp7s0 up
ip addr add 198.51.100.2/24 dev enp7s0 && ip route add default via 198.51.100.1
mkdir work
for i in 1 2 3; do
	ip netns add n$i
	plug eth$i s$i && ip link set eth$i netns n$i
	ip netns exec n$i sh -c "ip link set lo up; ip link set eth$i up; ip addr add 192.0.2.2$i/24 dev eth$i"
	mkfifo n$i.in
	ip netns exec n$i unshare --mount --pid --fork --kill-child --mount-proc bash -eu < n$i.in &
done
exec 11>n1.in 12>n2.in 13>n3.in
on() {
	local mark=$(mktemp -u $DIR/done.XXXXXX)
	{ cat; echo "touch $mark"; } >&1${1#n}
	for i in $(seq 300); do [ -e $mark ] && return; sleep 0.1; done
	echo "a command on $1 does not end"; exit 1
}
for i in 1 2 3; do { declare -f private; echo "DIR=$DIR; private n$i; cd $DIR/work; PATH=$PATH; NAME=n$i; set -x"; } | on n$i; done
private vm
cd work
set -x
`

const onEachServer = "# on each server\n"

// The commands of docs/nats-cluster.md are run in the order in which they stand,
// each on its machine.
func TestCommandsOfTheClusterPage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it makes namespaces")
	}
	page, err := os.ReadFile("../docs/nats-cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	binaries, err := filepath.Abs("../build/bin")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", ".", "../gateway-agent").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	script := "DIR=" + dir + "; PATH=" + filepath.Join(dir, "bin") + ":" + binaries + ":$PATH\n" + clusterMachines
	blocks := shellBlock.FindAllSubmatch(page, -1)
	if len(blocks) != 7 {
		t.Fatalf("the page has %d blocks of commands; are they still marked sh?", len(blocks))
	}
	for _, b := range blocks {
		script += commandsOf(string(b[1]))
	}
	expect(t, runAlone(t, script),
		"embedded NATS server started", "gateway/gw1", "wrote nats/n3/route.crt", "bucket egress-state created", "stream EGRESS_AUDIT created",
		"0 events of 0 processes", `{"status":"ok"}`,
	)
}

// commandsOf makes a block of the page part of the script.
func commandsOf(block string) string {
	if rest, found := strings.CutPrefix(block, onEachServer); found {
		// A person takes longer than NATS to go from one machine to the next.
		const ready = "\nuntil curl -sf http://127.0.0.1:8222/healthz; do sleep 0.1; done\n"
		if strings.Contains(rest, "healthz") {
			return "for s in n1 n2 n3; do on $s <<'BLOCK'\n" + rest + "BLOCK\ndone\n"
		}
		return "for s in n1 n2 n3; do on $s <<'BLOCK'\n" + rest + "BLOCK\ndone\n" + "for s in n1 n2 n3; do on $s <<'BLOCK'" + ready + "BLOCK\ndone\n"
	}
	var b strings.Builder
	for line := range strings.Lines(block) {
		b.WriteString(line)
		if strings.HasPrefix(line, "gateway-agent run &") {
			b.WriteString("agent=$!\nfor i in $(seq 20); do egressctl audit list --credentials egress/auditor 2>/dev/null | grep -q start && break; sleep 0.1; done\n")
		}
		if strings.HasPrefix(line, "egressctl audit list") {
			b.WriteString("kill $agent; wait $agent\n")
		}
	}
	return b.String()
}

// systemd takes the unit for a NATS server.
func TestNATSUnit(t *testing.T) {
	binaries, err := filepath.Abs("../build/bin")
	if err != nil {
		t.Fatal(err)
	}
	unit, err := filepath.Abs("../deploy/nats/nats-server.service")
	if err != nil {
		t.Fatal(err)
	}
	// The unit names the place of the program on a server.
	out, err := exec.Command("unshare", "--mount", "bash", "-c", `
set -eu
mount -t tmpfs tmpfs /usr/local/bin
cp -L "`+binaries+`/nats-server" /usr/local/bin/
systemd-analyze verify "`+unit+`"`).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}
