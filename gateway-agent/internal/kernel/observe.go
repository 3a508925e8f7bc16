// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// Sight is what a look came to. State is not to be changed, and holds until the
// next Look or Apply only: they go on with parts of it.
type Sight struct {
	Host  plan.Host
	State plan.State
	// Same says that all is as the last look, and the steps since, have left it.
	Same bool
}

// Look returns what is in the kernel now, both what is ours and what is to know
// of the host. Afresh, it reads everything. Else it reads only what may have
// changed since the last look: the kernel tells of each change of a link, an
// address or a route of ours (notices), and counts those of the rules
// (generation); those of iptables-legacy are compared with their fingerprints, and
// sysctls are read each time. So it costs next to nothing where nothing has
// changed.
//
// If ctx ends it gives up soon, with an error, and nothing is lost: it forgets
// what it has read, and what it was told is told by the next look.
func (k *Kernel) Look(ctx context.Context, afresh bool) (Sight, error) {
	defer k.rules.begin()()
	began := time.Now()
	k.unprotected = false
	news := k.hear()
	anew := afresh || !k.mirror.valid
	rules := k.startRules(ctx, afresh, anew)
	read, err := k.readLinks(ctx, anew)
	sysctls, err2 := k.readSysctls()
	sameRules, err3 := k.finishRules(ctx, rules)
	err = errors.Join(err, err2, err3)
	if err == nil {
		err = k.takeLinks(read, &news)
	}
	if err != nil {
		k.missed = k.missed || news || err3 == nil && !sameRules
		return Sight{}, err
	}
	host := k.hostFacts()
	if !rules.known {
		k.rules.took.Store(int64(time.Since(began)))
	}
	same := !news && !k.missed && sameRules && !afresh && maps.Equal(sysctls, k.sysctls)
	k.sysctls, k.missed = sysctls, false
	return Sight{Host: host, Same: same, State: plan.State{
		MarkMask: k.host.MarkMask, Sysctls: sysctls, Links: k.mirror.links, Addrs: k.mirror.addrs, Routes: k.mirror.routes,
		Chains: k.seen.chains, Hooks: k.seen.hooks, Guard: k.seen.guard, Neighbours: k.seen.neighbours,
	}}, nil
}

// Observe reads what is ours, all of it. The number of commands it runs does not
// depend on the number of tenants, and none of them writes. The result is the
// caller's own.
func (k *Kernel) Observe(ctx context.Context) (plan.State, error) {
	sight, err := k.Look(ctx, true)
	s := sight.State
	s.Links, s.Addrs, s.Routes = maps.Clone(s.Links), maps.Clone(s.Addrs), maps.Clone(s.Routes)
	s.Chains, s.Hooks = maps.Clone(s.Chains), maps.Clone(s.Hooks)
	s.Neighbours.MACs = maps.Clone(s.Neighbours.MACs)
	s.Guard.Sets = maps.Clone(s.Guard.Sets)
	for name, set := range s.Guard.Sets {
		s.Guard.Sets[name] = maps.Clone(set)
	}
	return s, err
}

// readLinks reads all links and addresses anew, if that is asked for; else it
// returns nil. Nothing is known of them before takeLinks.
func (k *Kernel) readLinks(ctx context.Context, anew bool) (*mirror, error) {
	if !anew {
		return nil, nil
	}
	links, err := dumpLinks(false)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	addrs, err := dumpAddrs(links)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	m := newMirror([2]string{k.host.Internal, k.host.External}, links, addrs)
	return &m, nil
}

// lookAtLinks does both, for those who look at nothing else. What it finds is
// told by the next look.
func (k *Kernel) lookAtLinks(ctx context.Context) error {
	news := k.hear()
	read, err := k.readLinks(ctx, true)
	if err == nil {
		k.seen.neighbours.Shape = "" // the kernel takes that table away with the NIC, which counts as no change of the rules
		err = k.takeLinks(read, &news)
	}
	k.missed = k.missed || news
	return err
}

// takeLinks brings the mirror up to date: by what was read, unless it is nil, and
// by what the kernel has told since. It sets news if that differs from what was
// known.
func (k *Kernel) takeLinks(read *mirror, news *bool) error {
	if read != nil {
		old := k.mirror
		k.mirror = *read
		if _, err := k.takeNotices(); err != nil {
			return err
		}
		defer func() { *news = *news || !old.valid || !k.mirror.equal(old) }()
	}
	if !k.mirror.stale {
		return nil
	}
	routes, err := k.observeRoutes(k.mirror.names)
	if err == nil {
		k.mirror.routes, k.mirror.stale = routes, false
	}
	return err
}

// hear is takeNotices for those who go on without: then everything is read anew
// by the next look.
func (k *Kernel) hear() (news bool) {
	news, err := k.takeNotices()
	if err != nil {
		k.log.Warn("the kernel's notices of changes can not be read; everything is read anew", "err", err)
	}
	return news || err != nil
}

// takeNotices carries over what the kernel has told.
func (k *Kernel) takeNotices() (news bool, err error) {
	lost, err := k.notices.read(func(kind uint16, message []byte) {
		if k.mirror.valid && k.mirror.take(kind, message) {
			news = true
		}
	})
	if lost || err != nil {
		k.mirror.valid = false
	}
	return news || lost, err
}

// readSysctls reads those that plans are about.
func (k *Kernel) readSysctls() (map[string]string, error) {
	out := make(map[string]string)
	for _, key := range plan.SysctlKeys(k.host) {
		v, err := k.readSysctl(key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		out[key] = v
	}
	return out, nil
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
func (k *Kernel) Facts(ctx context.Context) (plan.Host, error) {
	if err := k.lookAtLinks(ctx); err != nil {
		return k.host, err
	}
	return k.hostFacts(), nil
}

func (k *Kernel) hostFacts() plan.Host {
	h := k.host
	h.OnLink, h.Own, h.Advertised = nil, nil, nil
	for a := range k.mirror.others {
		h.Own = append(h.Own, a.prefix.Addr())
		if a.dev == h.Internal && !a.prefix.IsSingleIP() {
			h.OnLink = append(h.OnLink, a.prefix.Masked())
		}
	}
	slices.SortFunc(h.Own, netip.Addr.Compare)
	h.Own = slices.Compact(h.Own)
	slices.SortFunc(h.OnLink, netip.Prefix.Compare)
	h.OnLink = slices.Compact(h.OnLink)
	for _, nic := range []string{h.Internal, h.External} {
		if v, err := k.readSysctl(plan.AcceptRA(nic)); err == nil && v != "0" {
			h.Advertised = append(h.Advertised, nic)
		}
	}
	_, tools := k.tables[tenant.IPv6]
	h.IPv6 = tools && k.hasIPv6()
	return h
}
