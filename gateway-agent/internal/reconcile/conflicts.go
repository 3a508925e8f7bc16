// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/rhythm"
)

const (
	// conflictRetry is for how long an answer to a probe is believed: a pass in
	// between does not ask again, so that no other tenant waits for it.
	conflictRetry = 10 * time.Second
	// conflictFor is for how long a claim that was seen counts after it.
	conflictFor = time.Minute
	// claimAgain is for how long a claim need not be looked at again.
	claimAgain = time.Second
	// defendEvery is how often an address is announced against others' claims
	// (RFC 5227 section 2.4): two hosts that defend must not fill the network.
	defendEvery = 10 * time.Second
)

// answer is a host that answered to a probe.
type answer struct {
	mac string
	at  time.Time
}

// unclaimed returns the addresses that want adds to the kernel: those that
// another host is known to have, with its MAC, and those to ask for. An address
// that the kernel holds is not asked for: it is in use.
func (l *Loop) unclaimed(want, have plan.State, host plan.Host) (conflicts map[netip.Addr]string, ask []plan.Addr) {
	if l.Prober == nil {
		return nil, nil
	}
	missing := map[netip.Addr]plan.Addr{}
	for a := range want.Addrs {
		if _, held := have.Addrs[a]; !held && !l.free[a.IP] {
			missing[a.IP] = a
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	for a := range have.Addrs {
		delete(missing, a.IP)
	}
	now := l.Clock()
	for ip, a := range missing {
		if known, ok := l.answers[ip]; ok && now.Sub(known.at) < conflictRetry {
			if conflicts == nil {
				conflicts = map[netip.Addr]string{}
			}
			conflicts[ip] = known.mac
			continue
		}
		if _, link := plan.LinkNumber(a.Dev); link {
			a.Dev = host.Internal
		}
		ask = append(ask, a)
	}
	slices.SortFunc(ask, func(x, y plan.Addr) int { return x.IP.Compare(y.IP) })
	return conflicts, ask
}

// probe asks for addresses. The function that it returns waits for the answers,
// and tells whether somebody has one of the addresses. A probe that can not be
// made is no conflict.
func (l *Loop) probe(ctx context.Context, ask []plan.Addr) (wait func() bool) {
	if len(ask) == 0 {
		return func() bool { return false }
	}
	var found map[netip.Addr]string
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		found, err = l.Prober.Probe(ctx, ask)
	}()
	return func() bool {
		<-done
		if err != nil {
			l.Log.Warn("new addresses could not be probed; they are claimed all the same", "err", err)
		}
		for _, a := range ask {
			delete(l.answers, a.IP)
			l.free[a.IP] = true
		}
		for ip, mac := range found {
			delete(l.free, ip)
			l.answers[ip] = answer{mac, l.Clock()}
		}
		return len(found) > 0
	}
}

// Claim is another host's use of an address that is in use here.
type Claim struct {
	IP  netip.Addr
	MAC string
}

// Claims keeps what is known of such use, and defends the addresses.
type Claims struct {
	Announce func(plan.Addr)
	Snapshot func() *Snapshot
	External string // NIC of the egress IPs
	Changed  func() // the problems did
	Counted  func()
	Clock    func() time.Time
	Log      *slog.Logger

	seen  map[netip.Addr]claimed
	found atomic.Pointer[[]plan.Problem]
}

type claimed struct {
	mac          string
	at, defended time.Time
}

// Problems returns the claims of the last minute. Safe for concurrent use.
func (c *Claims) Problems() []plan.Problem {
	if p := c.found.Load(); p != nil {
		return *p
	}
	return nil
}

// Run takes claims until ctx ends.
func (c *Claims) Run(ctx context.Context, claims <-chan Claim) error {
	const every = conflictFor / 12
	expire := time.NewTicker(rhythm.Until(time.Now(), every, 0))
	defer expire.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case claim, open := <-claims:
			if !open {
				claims = nil
				continue
			}
			if c.take(claim) {
				c.settle()
			}
		case <-expire.C:
			expire.Reset(rhythm.Until(time.Now(), every, 0))
			c.settle()
		}
	}
}

// take tells whether the claim may change the problems: most repeat an earlier
// one, and a host can send many.
func (c *Claims) take(claim Claim) bool {
	if c.seen == nil {
		c.seen = make(map[netip.Addr]claimed)
	}
	c.Counted()
	now, s := c.Clock(), c.seen[claim.IP]
	if s.mac == claim.MAC && now.Sub(s.at) < claimAgain {
		return false
	}
	s.mac, s.at = claim.MAC, now
	if r, addr, ok := c.owner(claim.IP); ok && now.Sub(s.defended) >= defendEvery {
		s.defended = now
		c.Announce(addr)
		c.Log.Warn("another host claims an address in use; announced again", "tenant", r.String(), "ip", claim.IP.String(), "mac", claim.MAC)
	}
	c.seen[claim.IP] = s
	return true
}

// settle forgets old claims, and tells when the problems have changed.
func (c *Claims) settle() {
	var problems []plan.Problem
	for _, ip := range slices.SortedFunc(maps.Keys(c.seen), netip.Addr.Compare) {
		s := c.seen[ip]
		r, _, ours := c.owner(ip)
		if !ours || c.Clock().Sub(s.at) >= conflictFor {
			delete(c.seen, ip)
			continue
		}
		problems = append(problems, plan.Problem{Cluster: r.Cluster, Tenant: r.Name, Reason: plan.ReasonConflict, Message: fmt.Sprintf(
			"address %s is in use here, but the host with MAC %s claims it too; take it from that host, or leave it out of the pool", ip, s.mac)})
	}
	if before := c.Problems(); !slices.Equal(before, problems) {
		c.found.Store(&problems)
		c.Changed()
	}
}

// owner returns the tenant that has ip, and the place of ip.
func (c *Claims) owner(ip netip.Addr) (Ref, plan.Addr, bool) {
	m := c.Snapshot().Memory
	for _, r := range m.Refs() {
		e, _ := m.Entry(r)
		switch {
		case slices.Contains(e.Record.GatewayIPs, ip):
			return r, plan.Addr{Dev: plan.LinkName(e.Number), IP: ip}, true
		case slices.Contains(e.Record.EgressIPs, ip):
			return r, plan.Addr{Dev: c.External, IP: ip}, true
		}
	}
	return Ref{}, plan.Addr{}, false
}
