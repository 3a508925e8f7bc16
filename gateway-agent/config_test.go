// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"egress-gateway.io/shared/bus"

	"egress-gateway.io/shared/settings"
)

// setEnv makes vars the only GATEWAY_* variables, on top of the required ones.
func setEnv(t *testing.T, vars map[string]string) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "GATEWAY_") {
			t.Setenv(name, "") // restored at the end of the test
			os.Unsetenv(name)
		}
	}
	all := map[string]string{"NAME": "gw1", "INTERNAL_INTERFACE": "enp1s0", "EXTERNAL_INTERFACE": "enp7s0", "NATS_CERT_FILE": os.DevNull, "NATS_KEY_FILE": os.DevNull}
	for k, v := range vars {
		all[k] = v
	}
	for k, v := range all {
		t.Setenv("GATEWAY_"+k, v)
	}
}

func TestConfigDefaults(t *testing.T) {
	setEnv(t, nil)
	got, err := loadConfig(os.Environ())
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Name: "gw1", Group: "default", InternalInterface: "enp1s0", ExternalInterface: "enp7s0", MarkMask: 0xfff00000,
		StateDir: "/var/lib/egress-gateway", SysctlRoot: "/proc/sys", IPTables: "iptables", Resync: 30 * time.Second, ProbeWait: 60 * time.Millisecond, Listen: "127.0.0.1:9809",
		LogLevel: "info", LogFormat: "json", NATS: bus.Config{URL: []string{"tls://127.0.0.1:4222"}, CertFile: os.DevNull, KeyFile: os.DevNull},
		NATSEmbeddedConfig: "/etc/nats/nats.conf",
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestConfigEveryVariable has a right and a wrong value for each variable, and
// fails if one is missing here.
func TestConfigEveryVariable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		good  string
		check func(Config) bool
		bad   map[string]string // value -> part of the remedy
		with  map[string]string
	}{
		"NAME":               {"gw-2", func(c Config) bool { return c.Name == "gw-2" }, map[string]string{"": "give this gateway a name", "Gw.1": "lower-case"}, nil},
		"GROUP":              {"dmz", func(c Config) bool { return c.Group == "dmz" }, map[string]string{"a b": "lower-case"}, nil},
		"INTERNAL_INTERFACE": {"eth0", func(c Config) bool { return c.InternalInterface == "eth0" }, map[string]string{"": "is not set", "a-name-far-too-long": "name of a network interface", "en/p": "name of a network interface"}, nil},
		"EXTERNAL_INTERFACE": {"eth1.7", func(c Config) bool { return c.ExternalInterface == "eth1.7" }, map[string]string{"": "is not set", "enp1s0": "needs two NICs"}, nil},
		"POD_NETWORKS": {"10.128.0.0/14,fd01::/48", func(c Config) bool {
			return slices.Equal(c.PodNetworks, []netip.Prefix{netip.MustParsePrefix("10.128.0.0/14"), netip.MustParsePrefix("fd01::/48")})
		}, map[string]string{"10.128.0.0": "comma list of networks", "10.128.1.0/14": "10.128.0.0/14", "0.0.0.0/0": "not everything"}, nil},
		"MARK_MASK":   {"0xffff0", func(c Config) bool { return c.MarkMask == 0xffff0 }, map[string]string{"0xff": "12 or more bits", "0xf0ff0000": "without a gap", "many": "want a number"}, nil},
		"STATE_DIR":   {"/srv/eg", func(c Config) bool { return c.StateDir == "/srv/eg" }, map[string]string{"var/lib": "absolute"}, nil},
		"IPTABLES":    {"iptables-legacy", func(c Config) bool { return c.IPTables == "iptables-legacy" }, map[string]string{"nft": "iptables-nft"}, nil},
		"SYSCTL_ROOT": {"/host/proc/sys", func(c Config) bool { return c.SysctlRoot == "/host/proc/sys" }, map[string]string{"proc": "absolute"}, nil},
		"RESYNC":      {"2m", func(c Config) bool { return c.Resync == 2*time.Minute }, map[string]string{"10ms": "100ms to 1h", "thirty": "want a duration", "30": "want a duration"}, nil},
		"PROBE_WAIT":  {"0s", func(c Config) bool { return c.ProbeWait == 0 }, map[string]string{"-1s": "want 0s (off) to 1s", "2s": "want 0s (off) to 1s", "60": "want a duration"}, nil},
		"LISTEN":      {":9000", func(c Config) bool { return c.Listen == ":9000" }, map[string]string{"9000": "host:port", "a:b": "host:port"}, nil},
		"LOG_LEVEL":   {"debug", func(c Config) bool { return c.LogLevel == "debug" }, map[string]string{"loud": "debug, info, warn or error"}, nil},
		"LOG_FORMAT":  {"text", func(c Config) bool { return c.LogFormat == "text" }, map[string]string{"xml": "json or text"}, nil},

		"NATS_EMBEDDED":        {"true", func(c Config) bool { return c.NATSEmbedded }, map[string]string{"maybe": "true or false"}, nil},
		"NATS_EMBEDDED_CONFIG": {"/srv/nats.conf", func(c Config) bool { return c.NATSEmbeddedConfig == "/srv/nats.conf" }, map[string]string{"nats.conf": "absolute path"}, nil},
		"NATS_EMBEDDED_LISTEN": {"10.0.0.1:4222", func(c Config) bool { return c.NATSEmbeddedListen == "10.0.0.1:4222" }, map[string]string{"10.0.0.1": "host:port"}, nil},

		"NATS_URL":           {"nats://a:4222,tls://b:4222", func(c Config) bool { return len(c.NATS.URL) == 2 }, map[string]string{"http://a": "want tls://"}, nil},
		"NATS_CREDS_FILE":    {file, func(c Config) bool { return c.NATS.CredsFile == file }, map[string]string{"/nowhere": "no such file"}, nil},
		"NATS_NKEY_FILE":     {file, func(c Config) bool { return c.NATS.NkeyFile == file }, map[string]string{"/nowhere": "no such file"}, nil},
		"NATS_USER":          {"me", func(c Config) bool { return c.NATS.User == "me" }, map[string]string{}, map[string]string{"NATS_PASSWORD_FILE": file}},
		"NATS_PASSWORD_FILE": {file, func(c Config) bool { return c.NATS.PasswordFile == file }, map[string]string{"/nowhere": "no such file"}, map[string]string{"NATS_USER": "me"}},
		"NATS_CA_FILE":       {file, func(c Config) bool { return c.NATS.CAFile == file }, map[string]string{"/nowhere": "no such file"}, nil},
		"NATS_CERT_FILE":     {file, func(c Config) bool { return c.NATS.CertFile == file }, map[string]string{"/nowhere": "no such file"}, map[string]string{"NATS_KEY_FILE": file}},
		"NATS_KEY_FILE":      {file, func(c Config) bool { return c.NATS.KeyFile == file }, map[string]string{"/nowhere": "no such file"}, map[string]string{"NATS_CERT_FILE": file}},
		"NATS_TLS_FIRST":     {"true", func(c Config) bool { return c.NATS.TLSFirst }, map[string]string{"maybe": "true or false"}, nil},
		"NATS_ALLOW_INSECURE_PLAINTEXT_FOR_LAB": {"true", func(c Config) bool { return c.NATS.AllowInsecurePlaintextForLab }, map[string]string{"maybe": "true or false"},
			map[string]string{"NATS_URL": "nats://a:4222", "NATS_CERT_FILE": "", "NATS_KEY_FILE": ""}},
	}
	all, err := settings.Describe(envPrefix, &Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		if _, ok := tests[strings.TrimPrefix(v.Name, "GATEWAY_")]; !ok {
			t.Errorf("no test of %s", v.Name)
		}
	}
	with := func(tt map[string]string, name, value string) map[string]string {
		vars := map[string]string{name: value}
		for k, v := range tt {
			vars[k] = v
		}
		return vars
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			setEnv(t, with(tt.with, name, tt.good))
			if c, err := loadConfig(os.Environ()); err != nil || !tt.check(c) {
				t.Errorf("%q: %+v, %v", tt.good, c, err)
			}
			for value, remedy := range tt.bad {
				setEnv(t, with(tt.with, name, value))
				_, err := loadConfig(os.Environ())
				if err == nil {
					t.Errorf("%q was accepted", value)
					continue
				}
				if text := err.Error(); !strings.Contains(text, "GATEWAY_"+name) || !strings.Contains(text, value) || !strings.Contains(text, remedy) {
					t.Errorf("%q: %q names not all of variable, value and %q", value, text, remedy)
				}
			}
		})
	}
}

// A NATS that anybody can read or write to is refused.
func TestConfigInsecureNATS(t *testing.T) {
	nobody := map[string]string{"NATS_CERT_FILE": "", "NATS_KEY_FILE": ""}
	for url, want := range map[string][]string{
		"":              {"no credentials for NATS: set GATEWAY_NATS_NKEY_FILE", "egressctl init"},
		"nats://a:4222": {`GATEWAY_NATS_URL="nats://a:4222": this connection would not be encrypted`, "GATEWAY_NATS_CA_FILE", "set GATEWAY_NATS_ALLOW_INSECURE_PLAINTEXT_FOR_LAB=true"},
	} {
		if url != "" {
			nobody["NATS_URL"] = url
		}
		setEnv(t, nobody)
		_, err := loadConfig(os.Environ())
		for _, part := range want {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%v lacks %q", err, part)
			}
		}
	}
}

func TestConfigAllErrorsAtOnce(t *testing.T) {
	setEnv(t, map[string]string{"RESYNC": "x", "MARK_MASK": "y", "NATS_TLS_FIRST": "z", "INTERNAL_INTERFASE": "enp1s0"})
	_, err := loadConfig(os.Environ())
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"GATEWAY_RESYNC", "GATEWAY_MARK_MASK", "GATEWAY_NATS_TLS_FIRST", "did you mean GATEWAY_INTERNAL_INTERFACE?"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	setEnv(t, map[string]string{"NAME": "A", "RESYNC": "1ms", "LISTEN": "x", "FROBNICATE": "1"})
	_, err = loadConfig(os.Environ())
	for _, part := range []string{"GATEWAY_NAME", "GATEWAY_RESYNC", "GATEWAY_LISTEN", "GATEWAY_FROBNICATE is no variable of this program: remove it"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v lacks %q", err, part)
		}
	}
}

// TestHelpListsEveryVariable: each with a meaning.
func TestHelpListsEveryVariable(t *testing.T) {
	list, err := settings.Describe(envPrefix, &Config{})
	if err != nil || len(list) < 20 {
		t.Fatal(list, err)
	}
	var out bytes.Buffer
	if err := printHelp(&out); err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		if v.Meaning == "" {
			t.Errorf("%s has no meaning", v.Name)
		}
		if !strings.Contains(out.String(), v.Name+" ") || !strings.Contains(out.String(), v.Meaning) {
			t.Errorf("the help lacks %s", v.Name)
		}
	}
}

// TestDocsListEveryVariable keeps the table in the documentation true.
func TestDocsListEveryVariable(t *testing.T) {
	const file = "../docs/gateway-agent.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list, err := settings.Describe(envPrefix, &Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		value := ""
		if v.Default != "" {
			value = "`" + v.Default + "`"
		}
		if row := fmt.Sprintf("| `%s` | %s | %s |", v.Name, value, v.Meaning); !strings.Contains(string(page), row) {
			t.Errorf("%s lacks the row\n%s", file, row)
		}
	}
}
