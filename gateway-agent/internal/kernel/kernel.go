// SPDX-License-Identifier: Apache-2.0

// Package kernel reads and writes what the gateway owns in the kernel of its
// VM: links, addresses, routes, iptables chains, the nftables guard, sysctls.
// It is the only importer of netlink and go-iptables. What is ours is told by
// the names in package plan; nothing else is ever written.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

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
// methods are not safe for concurrent use, except Counters, Strays and the watches.
type Kernel struct {
	host   plan.Host
	sysctl string
	nft    string
	tables map[tenant.Family]*tables
	nl     *netlink.Handle
	// sockets stay open. The kernel is asked to heed the filters of a request for
	// a list of routes; and to close one towards nftables would wait until all
	// processors have forgotten what was deleted before, 10 to 20 ms.
	sockets map[int]*nl.SocketHandle
	nftConn *nftables.Conn // stays open like sockets; nil until it is needed
	lists   *lister        // of what is in tables of nftables, stays open too
	log     *slog.Logger
	// What was seen last, and what keeps it true.
	mirror  mirror
	seen    rulesSeen
	sysctls map[string]string
	notices *notices
	missed  bool // something changed that a step did not make, and no Look has told yet
	watched watched
	rules   *ruleWatch
	prints  *fingerprints
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
	k := &Kernel{host: host, sysctl: o.SysctlRoot, log: o.Log, tables: make(map[tenant.Family]*tables), lists: newLister(unix.NETLINK_NETFILTER)}
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
	if err := k.openSockets(); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if k.notices, err = openNotices(); err != nil {
		return nil, err
	}
	if k.rules, err = openRuleWatch(); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if k.prints, err = openFingerprints(k.legacyFamilies()); err != nil {
		k.log.Warn("the rules of iptables-legacy are read at each look, as no raw socket could be opened; give the container NET_RAW", "err", err)
	}
	return k, nil
}

func (k *Kernel) openSockets() error {
	k.sockets = make(map[int]*nl.SocketHandle)
	for _, protocol := range []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER} {
		socket, err := nl.Subscribe(protocol)
		if err != nil {
			return err
		}
		if err := socket.SetReceiveTimeout(&nl.SocketTimeoutTv); err != nil {
			return err
		}
		k.sockets[protocol] = &nl.SocketHandle{Socket: socket}
	}
	fd := k.sockets[unix.NETLINK_ROUTE].Socket.GetFd()
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		k.log.Debug("the kernel lists all routes when asked for some", "err", err)
	}
	return nil
}

// Close releases the kernel's sockets. The data path stays as it is.
func (k *Kernel) Close() {
	k.nl.Close()
	for _, sockets := range []map[int]*nl.SocketHandle{k.sockets, k.rules.sockets} {
		for _, s := range sockets {
			s.Socket.Close()
		}
	}
	k.closeNFT()
	k.lists.close()
	if err := k.prints.close(); err != nil {
		k.log.Debug("close the sockets towards iptables-legacy", "err", err)
	}
	k.notices.file.Close()
}

// Watch calls report, from one goroutine, whenever the kernel tells of a change
// of links, addresses or routes of ours that no Look has taken in, until ctx
// ends. Safe for concurrent use with all other methods but Close.
func (k *Kernel) Watch(ctx context.Context, report func()) error { return k.notices.watch(ctx, report) }

// Backend says which iptables serves, by its version and its kernel interface:
// "1.8.9 (nf_tables)" or "1.8.9 (legacy)". Versions before 1.8 name no interface;
// they know the older one only.
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
