// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"egress-gateway.io/shared/settings"
)

// configured returns what loadConfig says of these variables.
func configured(t *testing.T, vars map[string]string) (Config, error) {
	t.Helper()
	var environ []string
	for k, v := range vars {
		t.Setenv(k, v)
		environ = append(environ, k+"="+v)
	}
	return loadConfig(environ)
}

func TestConfig(t *testing.T) {
	good := map[string]string{"CLUSTER_NAME": "prod-1", "CLUSTER_POD_NETWORKS": "10.128.0.0/14,fd01::/48", "CLUSTER_NATS_NKEY_FILE": os.DevNull}
	for _, c := range []struct {
		name  string
		vars  map[string]string
		wants []string // what the error has to mention; none: accepted
	}{
		{"the least", nil, nil},
		{"all", map[string]string{"CLUSTER_LEASE_DURATION": "3s", "CLUSTER_LEASE_RENEW_DEADLINE": "2s", "CLUSTER_LEASE_RETRY_PERIOD": "500ms", "CLUSTER_NATS_URL": "tls://a:4222,tls://b:4222", "CLUSTER_LOG_FORMAT": "text"}, nil},
		{"no name", map[string]string{"CLUSTER_NAME": ""}, []string{"CLUSTER_NAME is not set"}},
		{"a bad name", map[string]string{"CLUSTER_NAME": "Prod_1"}, []string{`CLUSTER_NAME="Prod_1"`, "lower-case"}},
		{"no pod networks", map[string]string{"CLUSTER_POD_NETWORKS": ""}, []string{"CLUSTER_POD_NETWORKS is not set", "10.128.0.0/14"}},
		{"pod networks that are none", map[string]string{"CLUSTER_POD_NETWORKS": "10.128.0.0"}, []string{`CLUSTER_POD_NETWORKS="10.128.0.0"`, "comma list of networks"}},
		{"host bits", map[string]string{"CLUSTER_POD_NETWORKS": "10.128.0.1/14"}, []string{`CLUSTER_POD_NETWORKS="10.128.0.1/14"`}},
		{"everything is a pod", map[string]string{"CLUSTER_POD_NETWORKS": "0.0.0.0/0"}, []string{"CLUSTER_POD_NETWORKS"}},
		{"a duration that is none", map[string]string{"CLUSTER_LEASE_DURATION": "15"}, []string{`CLUSTER_LEASE_DURATION="15"`, "e.g. 30s"}},
		{"a lease that can not work", map[string]string{"CLUSTER_LEASE_RENEW_DEADLINE": "20s"}, []string{"CLUSTER_LEASE_DURATION", "20s"}},
		{"no such kubeconfig", map[string]string{"CLUSTER_KUBECONFIG": "/no/such"}, []string{`CLUSTER_KUBECONFIG="/no/such"`}},
		{"no address to listen on", map[string]string{"CLUSTER_LISTEN": "9808"}, []string{`CLUSTER_LISTEN="9808"`, "host:port"}},
		{"a log level that is none", map[string]string{"CLUSTER_LOG_LEVEL": "loud"}, []string{`CLUSTER_LOG_LEVEL="loud"`, "debug"}},
		{"a log format that is none", map[string]string{"CLUSTER_LOG_FORMAT": "xml"}, []string{`CLUSTER_LOG_FORMAT="xml"`, "json"}},
		{"a NATS URL that is none", map[string]string{"CLUSTER_NATS_URL": "http://x"}, []string{"CLUSTER_NATS_URL", "tls://"}},
		{"NATS without TLS", map[string]string{"CLUSTER_NATS_URL": "nats://a:4222"}, []string{`CLUSTER_NATS_URL="nats://a:4222": this connection would not be encrypted`, "CLUSTER_NATS_CA_FILE", "set CLUSTER_NATS_ALLOW_INSECURE_PLAINTEXT_FOR_LAB=true"}},
		{"NATS without credentials", map[string]string{"CLUSTER_NATS_NKEY_FILE": ""}, []string{"set CLUSTER_NATS_NKEY_FILE", "egressctl init"}},
		{"a lab", map[string]string{"CLUSTER_NATS_URL": "nats://a:4222", "CLUSTER_NATS_NKEY_FILE": "", "CLUSTER_NATS_ALLOW_INSECURE_PLAINTEXT_FOR_LAB": "true"}, nil},
		{"a misspelt variable", map[string]string{"CLUSTER_NATSURL": "nats://a:4222"}, []string{"CLUSTER_NATSURL", "did you mean CLUSTER_NATS_URL?"}},
		{"several mistakes at once", map[string]string{"CLUSTER_NAME": "X", "CLUSTER_LISTEN": "x"}, []string{"CLUSTER_NAME", "CLUSTER_LISTEN"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			vars := map[string]string{}
			for _, m := range []map[string]string{good, c.vars} {
				for k, v := range m {
					vars[k] = v
				}
			}
			_, err := configured(t, vars)
			if (err != nil) != (len(c.wants) > 0) {
				t.Fatal(err)
			}
			for _, want := range c.wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\ndoes not mention %q", err, want)
				}
			}
		})
	}
}

func TestHelpExplainsEveryVariable(t *testing.T) {
	var b bytes.Buffer
	if code := run([]string{"--help"}, nil, &b, &b); code != exitOK {
		t.Fatalf("exit code %d", code)
	}
	all, err := settings.Describe(envPrefix, &Config{})
	if err != nil || len(all) < 20 {
		t.Fatal(all, err)
	}
	for _, v := range all {
		if v.Meaning == "" {
			t.Errorf("%s has no meaning", v.Name)
		}
		if !strings.Contains(b.String(), v.Name) || !strings.Contains(b.String(), v.Meaning) {
			t.Errorf("--help lacks %s", v.Name)
		}
	}
}

func TestCommandLine(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"--version"}, nil, &out, &errs); code != exitOK || !strings.HasPrefix(out.String(), "cluster-agent ") {
		t.Errorf("--version: %d, %q", code, out.String())
	}
	if code := run([]string{"serve"}, nil, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "serve") {
		t.Errorf("an unknown argument: %d, %q", code, errs.String())
	}
	errs.Reset()
	t.Setenv("CLUSTER_NAME", "X")
	if code := run(nil, []string{"CLUSTER_NAME=X"}, &out, &errs); code != exitError || !strings.Contains(errs.String(), `CLUSTER_NAME="X"`) {
		t.Errorf("a wrong configuration: %d, %q", code, errs.String())
	}
}

// TestDocsListEveryVariable keeps the table in the documentation true.
func TestDocsListEveryVariable(t *testing.T) {
	const file = "../docs/cluster-agent.md"
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
