// SPDX-License-Identifier: Apache-2.0

// Package kernel reads and writes what the gateway owns in the kernel of its
// VM: links, addresses, routes, iptables chains, the nftables guard, sysctls.
// It is the only importer of netlink and go-iptables. What is ours is told by
// the names in package plan; nothing else is ever written.
package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"os/exec"

	"github.com/coreos/go-iptables/iptables"
	"github.com/vishvananda/netlink"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// lockWait is how many seconds iptables waits for another program's lock.
const lockWait = 5

// Options of a Kernel. The zero value is what production uses.
type Options struct {
	SysctlRoot string // default /proc/sys
	// IPTables names the program for IPv4; "-save" and "-restore" are appended
	// to its name, and "ip" becomes "ip6" for IPv6. Default "iptables".
	IPTables string
	Log      *slog.Logger
}

// Kernel is the kernel of the network namespace that the process runs in. Its
// methods are not safe for concurrent use, except Counters.
type Kernel struct {
	host   plan.Host
	sysctl string
	nft    string
	tables map[tenant.Family]*tables
	nl     *netlink.Handle
	seen   rulesSeen
	log    *slog.Logger
	// unprotected says that a guard or sysctl could not be set since Observe.
	unprotected bool
}

// Failure is a step that could not be carried out.
type Failure struct {
	Step plan.Step
	Err  error
}

// New opens the kernel. It fails if the tools are not there; whether the VM
// fits otherwise is for Preflight to say.
func New(host plan.Host, o Options) (*Kernel, error) {
	k := &Kernel{host: host, sysctl: o.SysctlRoot, log: o.Log, tables: make(map[tenant.Family]*tables)}
	if k.sysctl == "" {
		k.sysctl = "/proc/sys"
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	program := o.IPTables
	if program == "" {
		program = "iptables"
	}
	v4, err := openTables(program, iptables.ProtocolIPv4)
	if err != nil {
		return nil, fmt.Errorf("iptables: %w (install the package iptables)", err)
	}
	k.tables[tenant.IPv4] = v4
	if k.hasIPv6() {
		v6, err := openTables("ip6"+program[len("ip"):], iptables.ProtocolIPv6)
		if err != nil {
			return nil, fmt.Errorf("ip6tables: %w (install the package iptables)", err)
		}
		k.tables[tenant.IPv6] = v6
	}
	if k.nft, err = exec.LookPath("nft"); err != nil {
		return nil, fmt.Errorf("nft: %w (install the package nftables)", err)
	}
	if k.nl, err = netlink.NewHandle(); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return k, nil
}

// Close releases the kernel's socket. The data path stays as it is.
func (k *Kernel) Close() { k.nl.Close() }

// Backend says which iptables serves: "nf_tables" or "legacy", and its version.
func (k *Kernel) Backend() string { return k.tables[tenant.IPv4].version }

// consistent repeats a dump that changes interrupted: a list that lacks
// something would have it programmed again, or taken for gone.
func consistent[T any](dump func() (T, error)) (T, error) {
	const attempts = 10
	for i := 1; ; i++ {
		v, err := dump()
		if err == nil || i == attempts || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
}
