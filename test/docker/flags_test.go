// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"slices"
	"strings"
	"testing"
)

// missingFlags starts gateway-agent without each of the flags in turn, and wants
// to be told which one it was, in the words of the command line.
func missingFlags(w *world) {
	const (
		network   = "--network host"
		admin     = "--cap-add NET_ADMIN"
		raw       = "--cap-add NET_RAW"
		sysctls   = "-v /proc/sys/net:/host/proc/sys/net"
		volume    = "-v egress-gateway:/var/lib/egress-gateway"
		readOnly  = "--read-only"
		legacy    = "GATEWAY_IPTABLES=iptables-legacy"
		lockMount = "-v /run/xtables.lock:/run/xtables.lock"
	)
	secrets := "-v " + w.secrets + "/gateways/gw1:/etc/egress-gateway/nats:ro"
	for _, c := range []struct {
		without, with, want []string
	}{
		{[]string{admin}, nil, []string{"the process lacks NET_ADMIN; ", admin + "\n"}},
		{[]string{raw}, nil, []string{"the process lacks NET_RAW; ", raw + "\n"}},
		{[]string{network}, []string{"--network", "none"}, []string{`internal interface: there is no "enp1s0"`, `external interface: there is no "enp7s0"`, network}},
		{[]string{sysctls}, nil, []string{sysctls}},
		{[]string{volume}, nil, []string{"read-only file system", volume}},
		{[]string{volume}, []string{"-v", "egress-gateway:/var/lib/egress-gateway:ro"}, []string{"read-only file system", volume}},
		{[]string{secrets}, nil, []string{`GATEWAY_NATS_CA_FILE="/etc/egress-gateway/nats/ca.crt"`, "GATEWAY_NATS_NKEY_FILE=", "no such file"}},
		{nil, []string{"-e", legacy}, []string{"/run/xtables.lock: read-only file system", lockMount}},
		{[]string{network, admin, raw, sysctls, volume}, nil, []string{admin + " " + raw, network, sysctls, volume}},
	} {
		w.t.Run("without "+strings.Join(c.without, " ")+" "+strings.Join(c.with, " "), func(t *testing.T) {
			args := append([]string{"run", "--rm"}, flat(w.gatewayFlagsBut(c.without...))...)
			out, err := w.vm.try(slices.Concat(args, c.with, []string{image("gateway-agent")})...)
			if err == nil {
				t.Fatalf("it ran, and ended well: %s", out)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error()+"\n", want) {
					t.Errorf("no %q in what it says:\n%v", want, err)
				}
			}
			t.Log(err)
		})
	}
	w.t.Run("with a state that goes with the container", func(t *testing.T) {
		w.vm.docker(append(append([]string{"run", "-d", "--name", "forgets"}, flat(w.gatewayFlagsBut(volume, readOnly))...), image("gateway-agent"))...)
		w.until("the warning", func() (bool, error) {
			return strings.Contains(w.logs("forgets"), "is no volume, its content goes with the container; in a container add: "+volume), nil
		})
		w.vm.docker("rm", "-f", "forgets")
	})
}

// gatewayFlagsBut leaves out some of the flags.
func (w *world) gatewayFlagsBut(without ...string) [][]string {
	return slices.DeleteFunc(w.gatewayFlags(), func(flag []string) bool { return slices.Contains(without, strings.Join(flag, " ")) })
}
