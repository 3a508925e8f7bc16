// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// world is a kernel made of values: the state, and the connections that
// tenants open whenever they can.
type world struct {
	state State
	flows map[binding]bool
	// damaged tells that a hand was at it: the maps need not agree with the trees.
	damaged bool
}

func newWorld() *world { return &world{state: cloneState(State{}), flows: map[binding]bool{}} }

func cloneState(s State) State {
	out := State{
		Sysctls: map[string]string{}, MarkMask: s.MarkMask, Guard: Guard{Rules: slices.Clone(s.Guard.Rules), Sets: map[string]GuardSet{}},
		Chains: map[ChainID][]string{}, Hooks: map[ChainID][]Hook{}, Links: map[string]Link{}, Addrs: map[Addr]string{}, Routes: map[Route]bool{},
	}
	maps.Copy(out.Sysctls, s.Sysctls)
	for k, v := range s.Guard.Sets {
		out.Guard.Sets[k] = maps.Clone(v)
	}
	for k, v := range s.Chains {
		out.Chains[k] = slices.Clone(v)
	}
	for k, v := range s.Hooks {
		out.Hooks[k] = slices.Clone(v)
	}
	maps.Copy(out.Links, s.Links)
	for k := range s.Addrs {
		out.Addrs[k] = "" // an observed state does not know
	}
	maps.Copy(out.Routes, s.Routes)
	out.Neighbours = Neighbours{Shape: s.Neighbours.Shape, MACs: map[netip.Addr]string{}} // as observed
	maps.Copy(out.Neighbours.MACs, s.Neighbours.MACs)
	return out
}

// apply carries out a step as the kernel would, or says why it would refuse.
func (w *world) apply(step Step) error {
	s := &w.state
	switch t := step.(type) {
	case SetGuard:
		s.Guard = cloneState(State{Guard: t.Guard}).Guard
	case DelGuard:
		s.Guard = Guard{Sets: map[string]GuardSet{}}
	case SetElements:
		s.Guard.Sets[t.Set] = GuardSet{}
		for _, e := range t.Elements {
			s.Guard.Sets[t.Set][e] = ""
		}
	case AddElement:
		for e := range s.Guard.Sets[t.Set] {
			if key, _, _ := strings.Cut(e, " : "); isMap(t.Set) && e != t.Element && strings.HasPrefix(t.Element, key+" : ") {
				return fmt.Errorf("the key has another value")
			}
		}
		s.Guard.Sets[t.Set][t.Element] = ""
	case DelElement:
		if _, ok := s.Guard.Sets[t.Set][t.Element]; !ok {
			return fmt.Errorf("no element")
		}
		delete(s.Guard.Sets[t.Set], t.Element)
	case SetNeighbours:
		s.Neighbours = cloneState(State{Neighbours: t.Neighbours}).Neighbours
	case DelNeighbours:
		s.Neighbours = Neighbours{}
	case AddNeighbour:
		if s.Neighbours.MACs[t.IP] != t.Was {
			return fmt.Errorf("element exists")
		}
		s.Neighbours.MACs[t.IP] = t.MAC
	case DelNeighbour:
		if s.Neighbours.MACs[t.IP] != t.MAC {
			return fmt.Errorf("no element")
		}
		delete(s.Neighbours.MACs, t.IP)
	case SetSysctl:
		s.Sysctls[t.Key] = t.Value
	case SetChain, NewChain, DelChain, AddRule, DelRule, SetHook:
		return w.applyRule(step)
	case MakeLink:
		if have, ok := s.Links[t.Link.Name]; ok && (have.MAC != t.Link.MAC || have.Parent != t.Link.Parent) {
			return fmt.Errorf("link exists")
		}
		l := t.Link
		if have, ok := s.Links[l.Name]; ok {
			l.Ready = have.Ready
		} else {
			l.Ready = false
		}
		s.Links[l.Name] = l
	case RaiseLink:
		l, ok := s.Links[t.Name]
		if !ok {
			return fmt.Errorf("no link")
		}
		for _, o := range s.Links {
			if o.Name != l.Name && o.MAC == l.MAC && o.Ready {
				return fmt.Errorf("another link with this MAC is up")
			}
		}
		l.Ready = true
		s.Links[l.Name] = l
	case DelLink:
		delete(s.Links, t.Name)
		maps.DeleteFunc(s.Addrs, func(a Addr, _ string) bool { return a.Dev == t.Name })
	case AddAddr:
		if _, tenantLink := LinkNumber(t.Addr.Dev); tenantLink && !s.Links[t.Addr.Dev].Ready {
			return fmt.Errorf("no link that is up")
		}
		if _, ok := s.Addrs[t.Addr]; ok {
			return fmt.Errorf("address exists")
		}
		if l, tenantLink := s.Links[t.Addr.Dev]; tenantLink && s.Neighbours.MACs[t.Addr.IP] != l.MAC {
			return fmt.Errorf("nobody can ask for it")
		}
		if err := w.ready(t.Addr); err != nil {
			return err
		}
		s.Addrs[t.Addr] = ""
	case DelAddr:
		elsewhere := 0
		for a := range s.Addrs {
			if a.IP == t.Addr.IP {
				elsewhere++
			}
		}
		for f := range w.flows {
			if f.ip == t.Addr.IP && elsewhere == 1 {
				return fmt.Errorf("connections are left on it")
			}
		}
		if _, ok := s.Addrs[t.Addr]; !ok {
			return fmt.Errorf("no such address")
		}
		delete(s.Addrs, t.Addr)
	case SetRoute:
		for r := range s.Routes {
			if r.Dst == t.Route.Dst {
				if !t.Replace {
					return fmt.Errorf("route exists")
				}
				delete(s.Routes, r)
				break
			}
		}
		s.Routes[t.Route] = true
	case DelRoute:
		if !s.Routes[t.Route] {
			return fmt.Errorf("no such route")
		}
		delete(s.Routes, t.Route)
	case DeleteEgressFlows:
		maps.DeleteFunc(w.flows, func(f binding, _ bool) bool { return f.ip == t.Egress && (t.KeepMark == 0 || f.mark != t.KeepMark) })
	case DeleteMarkFlows:
		maps.DeleteFunc(w.flows, func(f binding, _ bool) bool { return f.mark == t.Mark })
	case AnnounceAddr:
		if _, ok := s.Addrs[Addr{t.Dev, t.IP}]; !ok {
			return fmt.Errorf("address is not there")
		}
	default:
		return fmt.Errorf("unknown step %T", step)
	}
	return nil
}

func (w *world) applyRule(step Step) error {
	f, table := RuleFamily(step)
	for _, line := range RestoreLines(step) {
		if name, ok := strings.CutPrefix(line, ":"); ok {
			w.state.Chains[ChainID{f, table, strings.Fields(name)[0]}] = []string{}
			continue
		}
		words := strings.SplitN(line, " ", 3)
		id, rule := ChainID{f, table, words[1]}, strings.Join(words[2:], " ")
		if !strings.HasPrefix(id.Name, ChainPrefix) {
			if err := w.applyHook(id, words[0], rule); err != nil {
				return err
			}
			continue
		}
		rules, ok := w.state.Chains[id]
		if !ok {
			return fmt.Errorf("no chain %s", id.Name)
		}
		switch words[0] {
		case "-A":
			if err := w.jumpExists(id, rule); err != nil {
				return err
			}
			w.state.Chains[id] = append(rules, rule)
		case "-D":
			i := slices.Index(rules, rule)
			if i < 0 {
				return fmt.Errorf("no rule %q in %s", rule, id.Name)
			}
			w.state.Chains[id] = slices.Delete(rules, i, i+1)
		case "-F":
			w.state.Chains[id] = []string{}
		case "-X":
			if w.referred(id) {
				return fmt.Errorf("chain %s is in use", id.Name)
			}
			delete(w.state.Chains, id)
		}
	}
	return nil
}

func (w *world) applyHook(id ChainID, verb, rule string) error {
	hooks := w.state.Hooks[id]
	if verb == "-D" {
		i := slices.IndexFunc(hooks, func(h Hook) bool { return h.Rule == rule })
		if i < 0 {
			return fmt.Errorf("no hook")
		}
		w.state.Hooks[id] = slices.Delete(hooks, i, i+1)
		if len(w.state.Hooks[id]) == 0 {
			delete(w.state.Hooks, id)
		}
		return nil
	}
	rule = strings.TrimPrefix(rule, "1 ")
	if err := w.jumpExists(id, rule); err != nil {
		return err
	}
	for i := range hooks {
		hooks[i].Position++
	}
	w.state.Hooks[id] = append([]Hook{{1, rule}}, hooks...)
	return nil
}

func (w *world) jumpExists(id ChainID, rule string) error {
	if to := ruleJump(rule); strings.HasPrefix(to, ChainPrefix) {
		if _, ok := w.state.Chains[ChainID{id.Family, id.Table, to}]; !ok {
			return fmt.Errorf("no chain %s to jump to", to)
		}
	}
	return nil
}

func (w *world) referred(id ChainID) bool {
	for other, rules := range w.state.Chains {
		for _, r := range rules {
			if other.Family == id.Family && other.Table == id.Table && ruleJump(r) == id.Name {
				return true
			}
		}
	}
	for other, hooks := range w.state.Hooks {
		for _, h := range hooks {
			if other.Family == id.Family && other.Table == id.Table && ruleJump(h.Rule) == id.Name {
				return true
			}
		}
	}
	return false
}

// traffic opens a connection for each tenant that can, and returns what would
// go wrong on the wire.
func (w *world) traffic() error {
	bound, marked := w.state.bound(testHost().MarkMask), w.marked()
	if w.damaged {
		bound = boundIn(w.state.Chains)
	}
	for b := range bound {
		if marked[given{tenant.FamilyOf(b.ip), b.mark}] && w.guarded(b) {
			w.flows[b] = true
		}
	}
	holder := make(map[netip.Addr]uint32)
	for b := range bound {
		if m, ok := holder[b.ip]; ok && m != b.mark {
			return fmt.Errorf("%s is bound to two marks", b.ip)
		}
		holder[b.ip] = b.mark
	}
	for f := range w.flows {
		if m, ok := holder[f.ip]; ok && m != f.mark && w.guarded(f) {
			return fmt.Errorf("a connection with mark %#x leaves with %s, which belongs to mark %#x", f.mark, f.ip, m)
		}
	}
	return nil
}

// ready tells what an address that comes would lack: it attracts traffic, which
// has to be guarded, marked and translated by then.
func (w *world) ready(a Addr) error {
	family := tenant.FamilyOf(a.IP)
	if len(w.state.Guard.Rules) == 0 || len(w.state.Hooks[ChainID{family, "filter", "FORWARD"}]) == 0 {
		return fmt.Errorf("%s comes before the guards", a.IP)
	}
	bound := w.state.bound(testHost().MarkMask)
	if n, tenantLink := LinkNumber(a.Dev); tenantLink {
		g := given{family, Mark(testHost().MarkMask, n)}
		if !w.marked()[g] || !w.translated()[g] {
			return fmt.Errorf("%s comes before its tenant's packets are marked and translated", a.IP)
		}
		for b := range bound {
			if b.mark == g.mark && tenant.FamilyOf(b.ip) == family && !w.guarded(b) {
				return fmt.Errorf("%s comes before the exit guard knows %s", a.IP, b.ip)
			}
		}
		return nil
	}
	for b := range bound {
		if b.ip == a.IP {
			return nil
		}
	}
	return fmt.Errorf("%s comes before it is anybody's", a.IP)
}

// guarded tells whether the exit guard lets packets of b pass.
func (w *world) guarded(b binding) bool {
	for e := range w.state.Guard.Sets[setName(setOwners, tenant.FamilyOf(b.ip))] {
		if strings.HasSuffix(e, " . "+staleElement(b.mark, b.ip)) {
			return true
		}
	}
	return false
}
