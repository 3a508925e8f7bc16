// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"egress-gateway.io/gateway-agent/internal/plan"
)

var errInjected = errors.New("injected")

// fakeKernel holds a state that steps really change. It refuses what a kernel
// refuses: a second link of one name, an address without its link.
type fakeKernel struct {
	host  plan.Host
	state plan.State
	steps []string // all that were applied, in order
	// failing makes each step fail whose text contains it; crashAfter ends all
	// doing after so many steps, as a SIGKILL would (-1: never).
	failing    string
	crashAfter int
	err        error // of Look
	// handAfter is how many steps are carried out before hand changes the state, as
	// somebody else might; the steps stop there.
	handAfter int
	hand      func(*plan.State)
	// left is the state as the last look, and the steps since, have left it;
	// fresh counts the looks that read everything, and reading is called within
	// them, before anything is read: a look whose ctx has ended then reads nothing.
	left    plan.State
	fresh   int
	reading func(context.Context)
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{
		host: plan.Host{
			Internal: "enp1s0", External: "enp7s0", MarkMask: 0xfff00000,
			OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.99.0/24")},
			Own:    []netip.Addr{netip.MustParseAddr("192.168.99.12"), netip.MustParseAddr("192.168.55.12")},
		},
		state: plan.State{
			Sysctls: map[string]string{}, Chains: map[plan.ChainID][]string{}, Hooks: map[plan.ChainID][]plan.Hook{},
			Links: map[string]plan.Link{}, Addrs: map[plan.Addr]string{}, Routes: map[plan.Route]bool{},
		},
		crashAfter: -1,
	}
}

var errUnprotected = errors.New("not tried")

var errCrashed = errors.New("the process is dead")

// Look copies the state; it is the same as before if no hand has changed it.
func (k *fakeKernel) Look(ctx context.Context, afresh bool) (Sight, error) {
	if afresh && k.reading != nil {
		if k.reading(ctx); ctx.Err() != nil {
			return Sight{}, ctx.Err()
		}
	}
	now := Sight{Host: k.host, State: k.copy()}
	now.Same = !afresh && reflect.DeepEqual(k.left, now.State)
	k.left = now.State
	if afresh {
		k.fresh++
	}
	return now, k.err
}

func (k *fakeKernel) copy() plan.State {
	s := k.state
	s.MarkMask = k.host.MarkMask
	s.Sysctls, s.Links, s.Routes = maps.Clone(s.Sysctls), maps.Clone(s.Links), maps.Clone(s.Routes)
	s.Chains, s.Hooks = maps.Clone(s.Chains), maps.Clone(s.Hooks)
	s.Addrs = map[plan.Addr]string{}
	for a := range k.state.Addrs {
		s.Addrs[a] = "" // a kernel does not know whose it is
	}
	s.Guard = cloneGuard(s.Guard)
	s.Neighbours.MACs = maps.Clone(s.Neighbours.MACs)
	return s
}

func cloneGuard(g plan.Guard) plan.Guard {
	out := plan.Guard{Sets: map[string]plan.GuardSet{}}
	for _, r := range g.Rules {
		r.Text = ""
		out.Rules = append(out.Rules, r)
	}
	for name, set := range g.Sets {
		out.Sets[name] = maps.Clone(set)
	}
	if len(g.Rules) == 0 {
		out.Sets = nil
	}
	return out
}

func (k *fakeKernel) Apply(_ context.Context, steps []plan.Step) (out []Failure, rest []plan.Step) {
	failed := map[string]bool{}
	unprotected := false
	for i, s := range steps {
		if k.hand != nil && k.handAfter == 0 {
			hand := k.hand
			k.hand = nil
			hand(&k.state)
			return out, steps[i:]
		}
		k.handAfter--
		if failed[s.Tenant()] {
			continue
		}
		err := errUnprotected
		if _, adds := s.(plan.AddElement); !unprotected || !letsIn(s) && !adds {
			err = k.apply(s)
		}
		if err != nil {
			failed[s.Tenant()] = s.Tenant() != ""
			unprotected = unprotected || protects(s)
			out = append(out, Failure{s, fmt.Errorf("%s: %w", s, err)})
		}
	}
	k.left = k.copy()
	return out, nil
}

func (k *fakeKernel) apply(s plan.Step) error {
	if k.crashAfter == 0 {
		return errCrashed
	}
	if k.failing != "" && strings.Contains(s.String(), k.failing) {
		return errInjected
	}
	k.crashAfter = max(k.crashAfter-1, -1)
	k.steps = append(k.steps, s.String())
	switch s := s.(type) {
	case plan.SetGuard:
		k.state.Guard = cloneGuard(s.Guard)
	case plan.DelGuard:
		k.state.Guard = plan.Guard{}
	case plan.SetElements:
		set := plan.GuardSet{}
		for _, e := range s.Elements {
			set[e] = ""
		}
		k.state.Guard.Sets[s.Set] = set
	case plan.AddElement:
		k.state.Guard.Sets[s.Set][s.Element] = ""
	case plan.DelElement:
		delete(k.state.Guard.Sets[s.Set], s.Element)
	case plan.SetNeighbours:
		k.state.Neighbours = plan.Neighbours{Shape: s.Neighbours.Shape, MACs: maps.Clone(s.Neighbours.MACs)}
	case plan.DelNeighbours:
		k.state.Neighbours = plan.Neighbours{}
	case plan.AddNeighbour:
		k.state.Neighbours.MACs[s.IP] = s.MAC
	case plan.DelNeighbour:
		delete(k.state.Neighbours.MACs, s.IP)
	case plan.SetSysctl:
		k.state.Sysctls[s.Key] = s.Value
	case plan.SetRoute:
		for r := range k.state.Routes {
			if r.Dst == s.Route.Dst && !s.Replace {
				return fmt.Errorf("route to %s exists", r.Dst)
			} else if r.Dst == s.Route.Dst {
				delete(k.state.Routes, r)
			}
		}
		k.state.Routes[s.Route] = true
	case plan.DelRoute:
		delete(k.state.Routes, s.Route)
	default:
		return k.applyMore(s)
	}
	return nil
}

func (k *fakeKernel) applyMore(s plan.Step) error {
	switch s := s.(type) {
	case plan.SetChain:
		k.state.Chains[s.ID] = slices.Clone(s.Rules)
	case plan.NewChain:
		k.state.Chains[s.ID] = nil
	case plan.DelChain:
		delete(k.state.Chains, s.ID)
	case plan.AddRule:
		k.state.Chains[s.ID] = append(slices.Clone(k.state.Chains[s.ID]), s.Rule)
	case plan.DelRule:
		i := slices.Index(k.state.Chains[s.ID], s.Rule)
		if i < 0 {
			return fmt.Errorf("no rule %q", s.Rule)
		}
		k.state.Chains[s.ID] = slices.Delete(slices.Clone(k.state.Chains[s.ID]), i, i+1)
	case plan.SetHook:
		delete(k.state.Hooks, s.ID)
		if s.Rule != "" {
			k.state.Hooks[s.ID] = []plan.Hook{{Position: 1, Rule: s.Rule}}
		}
	case plan.MakeLink:
		l := s.Link
		l.Ready = k.state.Links[l.Name].Ready
		k.state.Links[l.Name] = l
	case plan.RaiseLink:
		l, ok := k.state.Links[s.Name]
		if !ok {
			return fmt.Errorf("no link %s", s.Name)
		}
		l.Ready = true
		k.state.Links[s.Name] = l
	case plan.DelLink:
		delete(k.state.Links, s.Name)
		maps.DeleteFunc(k.state.Addrs, func(a plan.Addr, _ string) bool { return a.Dev == s.Name })
	case plan.AddAddr:
		if !k.state.Links[s.Addr.Dev].Ready && s.Addr.Dev != k.host.External {
			return fmt.Errorf("no device %s", s.Addr.Dev)
		}
		k.state.Addrs[s.Addr] = ""
	case plan.DelAddr:
		delete(k.state.Addrs, s.Addr)
	default:
		return fmt.Errorf("step of unknown type %T", s)
	}
	return nil
}

// has tells what the kernel holds of a tenant number: link, gateway IP, egress
// IP, in this order.
func (k *fakeKernel) links() []string { return sortedKeys(k.state.Links) }

func (k *fakeKernel) addrs() []string {
	var out []string
	for a := range k.state.Addrs {
		out = append(out, a.Dev+" "+a.IP.String())
	}
	slices.Sort(out)
	return out
}

func (k *fakeKernel) routes() []string {
	var out []string
	for r := range k.state.Routes {
		out = append(out, r.Dst.String()+" via "+r.Via.String())
	}
	slices.Sort(out)
	return out
}

// fakeFlows counts the deletions asked for; each finds one connection, unless
// there are none.
type fakeFlows struct {
	mu    sync.Mutex
	calls []string
	err   error
	empty bool
}

func (f *fakeFlows) none(empty bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.empty = empty
}

func (f *fakeFlows) add(s string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return 0, f.err
	}
	f.calls = append(f.calls, s)
	if f.empty {
		return 0, nil
	}
	return 1, nil
}

func (f *fakeFlows) Delete(_ context.Context, matches []FlowMatch) ([]int, error) {
	counts := make([]int, len(matches))
	for i, m := range matches {
		what := fmt.Sprintf("mark %#x", m.Mark)
		if m.Egress.IsValid() {
			what = fmt.Sprintf("egress %s but %#x", m.Egress, m.KeepMark)
		}
		n, err := f.add(what)
		if err != nil {
			return counts, err
		}
		counts[i] = n
	}
	return counts, nil
}

func (f *fakeFlows) DeleteUntranslated(_ context.Context, pods []netip.Prefix) (int, error) {
	return f.add(fmt.Sprintf("untranslated %v", pods))
}

type fakeAnnouncer struct {
	announced []plan.Addr
	kept      []plan.Addr
}

func (a *fakeAnnouncer) Announce(addr plan.Addr) { a.announced = append(a.announced, addr) }
func (a *fakeAnnouncer) Keep(all []plan.Addr)    { a.kept = all }

// fakeAudit keeps events by id, as a reader that knows repetitions does.
type fakeAudit struct {
	mu     sync.Mutex
	events []Event
}

func (a *fakeAudit) EmitAll(events []Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, events...)
	return nil
}

func (a *fakeAudit) told(kind string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, e := range a.events {
		if e.Kind == kind {
			out = append(out, strings.Trim(e.Cluster+"/"+strings.TrimPrefix(e.Subject, "tenant/")+" "+e.ID, "/ "))
		}
	}
	return out
}
