// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// Observe reads what is ours. The number of commands it runs does not depend
// on the number of tenants, and none of them writes. The result is not to be
// changed: a later one may share parts of it.
func (k *Kernel) Observe(ctx context.Context) (plan.State, error) {
	k.unprotected = false
	s := plan.State{
		MarkMask: k.host.MarkMask,
		Sysctls:  make(map[string]string),
		Chains:   make(map[plan.ChainID][]string),
		Hooks:    make(map[plan.ChainID][]plan.Hook),
		Addrs:    make(map[plan.Addr]string),
	}
	links, err := dumpLinks(false)
	if err != nil {
		return s, err
	}
	s.Links = ourLinks(links)
	addrs, err := dumpAddrs(links)
	if err != nil {
		return s, err
	}
	for _, a := range addrs {
		if _, tenantLink := s.Links[a.dev]; a.ours(tenantLink) {
			s.Addrs[plan.Addr{Dev: a.dev, IP: a.prefix.Addr()}] = ""
		}
	}
	if s.Routes, err = k.observeRoutes(links); err != nil {
		return s, err
	}
	for _, key := range plan.SysctlKeys(k.host) {
		v, err := k.readSysctl(key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s, err
		}
		s.Sysctls[key] = v
	}
	if err := k.observeRules(ctx, &s); err != nil {
		return s, err
	}
	// The kernel takes its chain away with the NIC, which counts as no change
	// of the rules.
	s.Neighbours, err = k.observeNeighbours(ctx)
	return s, err
}

func (k *Kernel) readSysctl(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join(k.sysctl, key))
	return strings.TrimSpace(string(b)), err
}

func (k *Kernel) writeSysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join(k.sysctl, key), []byte(value), 0o644); err != nil {
		return err
	}
	// Some keys take a value without keeping it, for example in a container
	// with a read-only tree mounted over it.
	if got, err := k.readSysctl(key); err != nil || got != value {
		return fmt.Errorf("%s is %q after %q was written: %w", key, got, value, errors.Join(err, errors.ErrUnsupported))
	}
	return nil
}

func (k *Kernel) hasIPv6() bool {
	v, err := k.readSysctl("net/ipv6/conf/all/disable_ipv6")
	return err == nil && v == "0"
}

// Facts returns the host with OnLink, Own, Advertised and IPv6 as the VM shows them now.
func (k *Kernel) Facts(context.Context) (plan.Host, error) {
	h := k.host
	links, err := dumpLinks(false)
	if err != nil {
		return h, err
	}
	addrs, err := dumpAddrs(links)
	if err != nil {
		return h, err
	}
	h.OnLink, h.Own, h.Advertised = nil, nil, nil
	ours := ourLinks(links)
	for _, a := range addrs {
		_, tenantLink := ours[a.dev]
		if tenantLink || a.ours(false) || a.link || a.prefix.Addr().IsLoopback() {
			continue
		}
		h.Own = append(h.Own, a.prefix.Addr())
		if a.dev == h.Internal && !a.prefix.IsSingleIP() {
			h.OnLink = append(h.OnLink, a.prefix.Masked())
		}
	}
	slices.SortFunc(h.Own, netip.Addr.Compare)
	h.Own = slices.Compact(h.Own)
	for _, nic := range []string{h.Internal, h.External} {
		if v, err := k.readSysctl(plan.AcceptRA(nic)); err == nil && v != "0" {
			h.Advertised = append(h.Advertised, nic)
		}
	}
	_, tools := k.tables[tenant.IPv6]
	h.IPv6 = tools && k.hasIPv6()
	return h, nil
}
