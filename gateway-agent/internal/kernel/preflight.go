// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"egress-gateway.io/shared/tenant"
)

// Check is one condition that the VM does not meet.
type Check struct {
	Name   string
	Err    error
	Remedy string // what to do about Err
	// Partial says that the VM can serve all the same, but not everything.
	Partial bool
}

// String returns one line for a person.
func (c Check) String() string { return fmt.Sprintf("%s: %v; %s", c.Name, c.Err, c.Remedy) }

// Preflight tells which conditions the VM does not meet; none is a good sign.
func (k *Kernel) Preflight(ctx context.Context) []Check {
	checks := []Check{
		capabilities("/proc/self/status"),
		{"internal interface", k.nicUp(k.host.Internal), "set GATEWAY_INTERNAL_INTERFACE to the NIC in the nodes' network, and set it up; in a container add: --network host", false},
		{"external interface", k.nicUp(k.host.External), "set GATEWAY_EXTERNAL_INTERFACE to the NIC towards the outside, and set it up; in a container add: --network host", false},
		{"interfaces", k.distinct(), "set GATEWAY_INTERNAL_INTERFACE and GATEWAY_EXTERNAL_INTERFACE to two different NICs", false},
		{"default route", k.defaultRoute(tenant.IPv4), "let the default route leave through the external interface: tenants' packets would go elsewhere, and be dropped", false},
		{"default route IPv6", k.defaultRoute6(ctx), "give the external interface an IPv6 default route: IPv6 packets of tenants go nowhere, or elsewhere, and are dropped", true},
		k.broadcastCopied(ctx),
		{"iptables", k.backend(ctx), "let the gateway use the same iptables as the host: set GATEWAY_IPTABLES=" + k.otherBackend(), false},
		{"iptables lock", k.lockFile(xtablesLock), "give the process a writable " + xtablesLock + "; in a container add: -v " + xtablesLock + ":" + xtablesLock, false},
		{"sysctls", k.sysctlsWritable(), "run as root; in a container add: -v /proc/sys/net:/host/proc/sys/net -e GATEWAY_SYSCTL_ROOT=/host/proc/sys", false},
	}
	var failed []Check
	for _, c := range checks {
		if c.Err != nil {
			failed = append(failed, c)
		}
	}
	return failed
}

// capabilities checks the effective set in a status file of procfs.
func capabilities(path string) Check {
	missing, err := missingCapabilities(path)
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("the process lacks %s", strings.Join(missing, " and "))
	}
	return Check{Name: "capabilities", Err: err, Remedy: "run as root; in a container add: --cap-add " + strings.Join(missing, " --cap-add ")}
}

func missingCapabilities(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(b), "CapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	have, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return nil, fmt.Errorf("CapEff of %s: %w", path, err)
	}
	var missing []string
	for _, c := range []struct {
		bit  int
		name string
	}{{unix.CAP_NET_ADMIN, "NET_ADMIN"}, {unix.CAP_NET_RAW, "NET_RAW"}} {
		if have&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	return missing, nil
}

func (k *Kernel) nicUp(name string) error {
	if up, err := k.isUp(name); err == nil {
		if !up {
			return fmt.Errorf("%s is down", name)
		}
		return nil
	}
	links, err := dumpLinks(false)
	if err != nil {
		return err
	}
	var names []string
	for _, l := range links {
		if l.name != "lo" && len(names) < 8 {
			names = append(names, l.name)
		}
	}
	if len(names) == 0 {
		names = []string{"none but lo"}
	}
	return fmt.Errorf("there is no %q; there are %s", name, strings.Join(names, ", "))
}

func (k *Kernel) distinct() error {
	if k.host.Internal == k.host.External {
		return fmt.Errorf("both are %s", k.host.Internal)
	}
	return nil
}

// defaultRoute6 checks the IPv6 default route while a tenant needs it.
func (k *Kernel) defaultRoute6(ctx context.Context) error {
	if !k.mirror.valid {
		if err := k.lookAtLinks(ctx); err != nil {
			return err
		}
	}
	for _, l := range k.mirror.links {
		if l.IPv6 {
			return k.defaultRoute(tenant.IPv6)
		}
	}
	return nil
}

// defaultRoute looks at the default route of the lowest metric.
func (k *Kernel) defaultRoute(f tenant.Family) error {
	family := netlink.FAMILY_V4
	if f == tenant.IPv6 {
		family = netlink.FAMILY_V6
	}
	list, err := consistent(func() ([]netlink.Route, error) {
		return k.nl.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST)
	})
	if err != nil {
		return err
	}
	external, err := k.linkIndex(k.host.External)
	if err != nil {
		return nil // said by another check
	}
	var best *netlink.Route
	for i, r := range list {
		if best == nil || r.Priority < best.Priority {
			best = &list[i]
		}
	}
	switch {
	case best == nil:
		return errors.New("there is none")
	case best.LinkIndex == external:
		return nil
	}
	for _, hop := range best.MultiPath {
		if hop.LinkIndex != external {
			return fmt.Errorf("one of its next hops (%s) is not on %s", hop.Gw, k.host.External)
		}
	}
	if len(best.MultiPath) > 0 {
		return nil
	}
	dev := fmt.Sprintf("link %d", best.LinkIndex)
	if l, err := k.nl.LinkByIndex(best.LinkIndex); err == nil {
		dev = l.Attrs().Name
	}
	return fmt.Errorf("it leaves through %s, not %s", dev, k.host.External)
}

// backend finds out whether rules stand in the other of iptables' two kernel
// interfaces: both are then in force, and a DROP over there could not be
// answered here. Tables without rules do no harm; some kernels make them.
func (k *Kernel) backend(ctx context.Context) error {
	other := k.otherBackend()
	save, err := exec.LookPath(other + "-save")
	if err != nil {
		return nil // nothing to look with; nothing that could have written there either
	}
	out, err := run(ctx, nil, save)
	if err != nil {
		return nil // the kernel lacks that interface
	}
	if rules := strings.Count("\n"+string(out), "\n-A "); rules > 0 {
		return fmt.Errorf("the gateway would use %s, but %s shows %d rules of this host", k.Backend(), other, rules)
	}
	return nil
}

// otherBackend is the iptables that this gateway does not use.
func (k *Kernel) otherBackend() string {
	if k.tables[tenant.IPv4].legacy() {
		return "iptables-nft"
	}
	return "iptables-legacy"
}

// xtablesLock is the file by which all programs that use iptables-legacy wait
// for each other (iptables/xshared.h). iptables-nft has no need of it.
const xtablesLock = "/run/xtables.lock"

func (k *Kernel) lockFile(path string) error {
	if !k.tables[tenant.IPv4].legacy() {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600) // as iptables does
	if err != nil {
		return err
	}
	return f.Close()
}

func (k *Kernel) sysctlsWritable() error {
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/arp_ignore"} {
		path := filepath.Join(k.sysctl, key)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
