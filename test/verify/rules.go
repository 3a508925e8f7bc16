// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

const module = "egress-gateway.io/"

// pure packages decide; they import nothing that can act on the world or ask
// it for something: not even the clock.
var pure = []string{
	"gateway-agent/internal/plan",
	"cluster-agent/internal/derive",
	"cluster-agent/internal/allocate",
	"shared/tenant",
	"shared/rhythm",
}

// impure is what a pure package must not import. "time" stays allowed for its
// types; calling time.Now is caught by the forbidden identifiers.
var impure = []string{"os", "os/exec", "net", "net/http", "log", "log/slog", "syscall", "io/fs"}

// ours lists, for each package of ours, which others of ours it may import.
// A package that is not listed may import nothing of ours. "..." at the end
// matches everything below.
var ours = map[string][]string{
	"shared/tenant":                    nil,
	"shared/rhythm":                    nil,
	"shared/daemon":                    nil,
	"shared/settings":                  nil,
	"egressctl":                        {"shared/..."},
	"shared/bus":                       {"shared/rhythm", "shared/tenant"},
	"shared/natsserver":                nil,
	"shared/natsconf":                  {"shared/bus", "shared/tenant"},
	"gateway-agent":                    {"gateway-agent/internal/...", "shared/..."},
	"gateway-agent/internal/plan":      {"shared/tenant"},
	"gateway-agent/internal/kernel":    {"gateway-agent/internal/plan", "shared/rhythm", "shared/tenant"},
	"gateway-agent/internal/flows":     nil,
	"gateway-agent/internal/announce":  nil,
	"gateway-agent/internal/reconcile": {"gateway-agent/internal/plan", "shared/rhythm", "shared/tenant"},
	"images/nats/nats-server":          {"shared/daemon"},
	"cluster-agent":                    {"cluster-agent/...", "shared/..."},
	"cluster-agent/api/v1alpha1":       nil,
	"cluster-agent/internal/iprange":   {"shared/tenant"},
	"cluster-agent/internal/derive":    {"cluster-agent/api/...", "cluster-agent/internal/allocate", "cluster-agent/internal/iprange", "shared/tenant"},
	"cluster-agent/internal/allocate":  {"cluster-agent/internal/iprange", "shared/tenant"},
	"cluster-agent/internal/kube":      {"cluster-agent/...", "shared/tenant"},
	"cluster-agent/internal/kube/ovn":  nil,
	"cluster-agent/internal/publish":   {"cluster-agent/...", "shared/tenant"},
}

// soleImporters lists, for a module outside, the only packages of the product
// that may import it. Tests and everything below test/ are exempt.
var soleImporters = map[string][]string{
	"github.com/vishvananda/netlink":       {"gateway-agent/internal/kernel"},
	"github.com/coreos/go-iptables":        {"gateway-agent/internal/kernel"},
	"github.com/google/nftables":           {"gateway-agent/internal/kernel"},
	"github.com/ti-mo/conntrack":           {"gateway-agent/internal/flows"},
	"github.com/nats-io/nats.go":           {"shared/bus"},
	"github.com/nats-io/nats-server":       {"shared/natsserver", "images/nats/nats-server"},
	"k8s.io/client-go":                     {"cluster-agent/internal/kube"},
	"github.com/kelseyhightower/envconfig": {"shared/settings"},
}

// bannedNames are package names that say nothing.
var bannedNames = []string{"util", "utils", "common", "helper", "helpers", "misc"}

// check returns what is wrong with one package: path below the module root,
// and what its non-test files import.
func check(path string, imports []string) []string {
	var out []string
	if forTests(path) {
		return nil
	}
	if name := path[strings.LastIndex(path, "/")+1:]; slices.Contains(bannedNames, name) {
		out = append(out, fmt.Sprintf("%s: a package named %s says nothing", path, name))
	}
	allowed, known := ours[path]
	if !known {
		out = append(out, fmt.Sprintf("%s: no import rule; add one to test/verify/rules.go", path))
	}
	for _, imp := range imports {
		if rest, own := strings.CutPrefix(imp, module); own {
			if !matches(allowed, rest) {
				out = append(out, fmt.Sprintf("%s must not import %s", path, rest))
			}
			continue
		}
		if slices.Contains(pure, path) && slices.Contains(impure, imp) {
			out = append(out, fmt.Sprintf("%s is pure and must not import %s", path, imp))
		}
		for mod, importers := range soleImporters {
			if (imp == mod || strings.HasPrefix(imp, mod+"/")) && !slices.Contains(importers, path) {
				out = append(out, fmt.Sprintf("%s must not import %s; only %s may", path, imp, strings.Join(importers, ", ")))
			}
		}
	}
	return out
}

// forTests tells packages that no program of the product contains.
func forTests(path string) bool {
	return strings.HasPrefix(path, "test/") || strings.HasSuffix(path, "test")
}

func matches(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, wild := strings.CutSuffix(p, "...")
		return p == path || wild && strings.HasPrefix(path, prefix)
	})
}
