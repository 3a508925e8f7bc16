// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/cluster-agent/internal/allocate"
	"egress-gateway.io/shared/tenant"
)

// Want is a tenant that is asked for.
type Want struct {
	Name string
	// Members are the namespaces that the tenant shall have, sorted by name.
	Members []Namespace
	// Pool and Ask are what is asked for; Group follows from the pool.
	Pool, Group string
	Ask         []netip.Addr
	// Have is what its EgressTenant holds from HavePool; empty without one.
	Have     allocate.Grant
	HavePool string
	// Object is its EgressTenant, or nil.
	Object *v1alpha1.EgressTenant
	// Allocate says that new addresses have to be found. Refused says why that
	// can not even be tried; then Have, if any, stays in force.
	Allocate bool
	Refused  *Refusal
	// Foreign says who else routes one of the members, or nil.
	Foreign *Refusal
}

// Held says whether the tenant has addresses now.
func (w Want) Held() bool { return len(w.Have.Egress) > 0 }

// GrantOf parses the addresses of an EgressTenant. What is no address is left
// out; the CRD does not let such pass.
func GrantOf(t *v1alpha1.EgressTenant) allocate.Grant {
	if t == nil {
		return allocate.Grant{}
	}
	return allocate.Grant{Egress: Addrs(t.Spec.EgressIPs), Gateway: Addrs(t.Spec.GatewayIPs)}
}

// Addrs parses addresses and leaves out what is none.
func Addrs[T ~string](texts []T) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		if a, err := netip.ParseAddr(string(text)); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// requests resolves what the namespaces ask for into tenants.
type requests struct {
	pools    map[string]Pool
	existing map[string]*v1alpha1.EgressTenant
	holders  map[netip.Addr]string
	foreign  *foreignRoutes
	members  map[string][]member
	problems []Problem
	families []tenant.Family // of the cluster's pods
}

// member is a namespace that asks to be part of a tenant.
type member struct {
	Namespace
	pool      string
	explicit  bool // by the tenant label
	incumbent bool // it is part of the tenant already
	ask       []netip.Addr
	askErr    error
}

func newRequests(in Input, pools map[string]Pool) *requests {
	r := &requests{
		pools: pools, existing: make(map[string]*v1alpha1.EgressTenant, len(in.Tenants)),
		foreign: newForeignRoutes(in), members: map[string][]member{},
	}
	r.holders = holders(in.Tenants)
	for _, t := range in.Tenants {
		r.existing[t.Name] = t
	}
	for _, ns := range in.Namespaces {
		pool, asks := ns.Labels[v1alpha1.LabelPool]
		if !asks {
			continue
		}
		m := member{Namespace: ns, pool: pool}
		name := ns.Labels[v1alpha1.LabelTenant]
		m.explicit = name != ""
		if !m.explicit {
			name = ns.Name
		}
		if err := tenant.ValidateName(name); err != nil {
			r.problem(ns, name, Refusal{ReasonInvalidTenantName, fmt.Sprintf("label %s: %v", v1alpha1.LabelTenant, err)})
			continue
		}
		m.ask, m.askErr = parseRequested(ns.Annotations[v1alpha1.AnnotationEgressIPs])
		r.members[name] = append(r.members[name], m)
	}
	return r
}

func (r *requests) problem(ns Namespace, tenantName string, why Refusal) {
	r.problems = append(r.problems, Problem{Kind: "Namespace", Name: ns.Name, UID: ns.UID, Tenant: tenantName, Refusal: why})
}

// resolveAll returns the wants, sorted by name.
func (r *requests) resolveAll() []Want {
	var wants []Want
	for _, name := range slices.Sorted(maps.Keys(r.members)) {
		if w, ok := r.resolve(name); ok {
			wants = append(wants, w)
		}
	}
	return wants
}

// resolve turns the namespaces that ask for one tenant into a want. It returns
// false if none of them may have the tenant.
func (r *requests) resolve(name string) (Want, bool) {
	w := Want{Name: name, Object: r.existing[name]}
	w.Have = r.rightful(name, GrantOf(w.Object))
	if w.Object != nil {
		w.HavePool, w.Group = w.Object.Spec.Pool, w.Object.Spec.GatewayGroup
	}
	all := r.members[name]
	slices.SortFunc(all, func(a, b member) int { return cmp.Compare(a.Name, b.Name) })
	var incumbents, newcomers []member
	for _, m := range all {
		m.incumbent = w.Held() && slices.Contains(w.Object.Spec.Namespaces, m.Name)
		if m.incumbent {
			incumbents = append(incumbents, m)
		} else {
			newcomers = append(newcomers, m)
		}
	}
	newcomers = r.admitNames(name, incumbents, newcomers)
	base := incumbents
	if len(base) == 0 {
		base, newcomers = r.admitPolicy(name, newcomers, &w)
	}
	if len(base) == 0 && w.Refused == nil {
		return Want{}, false // nobody is left; what the tenant had is released
	}
	r.agree(&w, base)
	joining, _ := r.admitPolicy(name, newcomers, nil)
	r.setMembers(&w, base, r.joinable(w, joining))
	r.judge(&w)
	return w, true
}

// admitNames refuses newcomers whose claim to the tenant's name would let them
// borrow somebody's address: sharing needs the label on every namespace, and
// who has the tenant already goes first.
func (r *requests) admitNames(name string, incumbents, newcomers []member) []member {
	others := newcomers
	if len(incumbents) > 0 {
		others = incumbents
	}
	var out []member
	for _, m := range newcomers {
		clash := slices.IndexFunc(others, func(o member) bool {
			if o.Name == m.Name || (o.explicit && m.explicit) {
				return false
			}
			return o.incumbent || !o.explicit // else m itself goes by its own name
		})
		if clash < 0 {
			out = append(out, m)
			continue
		}
		remedy := fmt.Sprintf("put the label %s=%s on both to share it, or choose another tenant name", v1alpha1.LabelTenant, name)
		r.problem(m.Namespace, name, Refusal{ReasonTenantNameTaken, fmt.Sprintf("tenant %q belongs to namespace %q; %s", name, others[clash].Name, remedy)})
	}
	return out
}

// admitPolicy refuses namespaces that may not use their pool, or that something
// else routes already. If all are refused and w is given, w becomes a refused
// want with all of them as members, so that there is a status to read.
func (r *requests) admitPolicy(name string, list []member, w *Want) (admitted, rest []member) {
	refusals := make([]*Refusal, len(list))
	for i, m := range list {
		if refusals[i] = r.policy(m); refusals[i] == nil {
			admitted = append(admitted, m)
		}
	}
	if len(admitted) == 0 && len(list) > 0 && w != nil {
		w.Refused = refusals[0]
		return list, nil
	}
	for i, m := range list {
		if refusals[i] != nil {
			r.problem(m.Namespace, name, *refusals[i])
		}
	}
	return admitted, nil
}

// policy says why a namespace that has nothing yet may not get anything.
func (r *requests) policy(m member) *Refusal {
	if m.Deleting {
		return &Refusal{ReasonNamespaceTerminating, "the namespace is being deleted and gets no new address"}
	}
	if p, ok := r.pools[m.pool]; ok && !p.badMatch && !p.allows(m.Labels) {
		return &Refusal{ReasonNamespaceNotAllowed, fmt.Sprintf("pool %q does not allow this namespace: its namespaceSelector does not match the namespace's labels; request from another pool, or ask the administrator", m.pool)}
	}
	return r.foreign.selecting(m.Namespace)
}

// agree sets what the members ask for together.
func (r *requests) agree(w *Want, base []member) {
	w.Pool = base[0].pool
	if w.Refused != nil {
		return
	}
	for _, m := range base {
		if m.pool != w.Pool {
			w.Refused = disagree(w.Name, "pools", base[0], m)
			return
		}
		if m.askErr != nil {
			w.Refused = invalidAsk(m)
			return
		}
		if len(m.ask) == 0 {
			continue
		}
		if len(w.Ask) > 0 && !slices.Equal(w.Ask, m.ask) {
			w.Refused = disagree(w.Name, "egress addresses", base[0], m)
			w.Ask = nil
			return
		}
		w.Ask = m.ask
	}
}

// joinable returns those newcomers that ask for what the tenant has anyway.
func (r *requests) joinable(w Want, newcomers []member) []member {
	var out []member
	for _, m := range newcomers {
		var why *Refusal
		switch {
		case m.askErr != nil:
			why = invalidAsk(m)
		case m.pool != w.Pool:
			why = &Refusal{ReasonNamespacesDisagree, fmt.Sprintf("tenant %q is served from pool %q, but this namespace asks for pool %q; use the same label on all namespaces of the tenant", w.Name, w.Pool, m.pool)}
		case len(m.ask) > 0 && !slices.Equal(m.ask, w.Ask) && !allocate.Satisfies(w.Have, m.ask):
			why = &Refusal{ReasonNamespacesDisagree, fmt.Sprintf("tenant %q has other egress addresses than this namespace asks for; use the same annotation on all namespaces of the tenant, or on one", w.Name)}
		default:
			out = append(out, m)
			continue
		}
		r.problem(m.Namespace, w.Name, *why)
	}
	return out
}

func (r *requests) setMembers(w *Want, base, joining []member) {
	for _, m := range append(slices.Clone(base), joining...) {
		w.Members = append(w.Members, m.Namespace)
	}
	slices.SortFunc(w.Members, func(a, b Namespace) int { return cmp.Compare(a.Name, b.Name) })
	for _, m := range w.Members {
		if w.Foreign == nil {
			w.Foreign = r.foreign.selecting(m)
		}
	}
}

// judge decides whether the want needs an allocation and whether its pool can
// give one.
func (r *requests) judge(w *Want) {
	p, known := r.pools[w.Pool]
	if known {
		if !w.Held() || w.HavePool == w.Pool {
			w.Group = p.Group
		}
	}
	if w.Held() && w.HavePool == w.Pool && allocate.Satisfies(w.Have, w.Ask) {
		return // whatever became of the pool, it stays
	}
	if w.Refused != nil {
		return
	}
	if !known {
		w.Refused = &Refusal{ReasonPoolNotFound, fmt.Sprintf("there is no pool %q; %s", w.Pool, r.poolNames())}
		return
	}
	if w.Refused = p.refusal(); w.Refused == nil {
		w.Refused = p.mismatch(r.families)
	}
	w.Allocate = w.Refused == nil
}

// poolNames is a hint for somebody who mistyped a pool's name.
func (r *requests) poolNames() string {
	names := slices.Sorted(maps.Keys(r.pools))
	if len(names) == 0 {
		return "the administrator has to create an EgressPool first"
	}
	const shown = 5
	more := ""
	if len(names) > shown {
		names, more = names[:shown], ", ..."
	}
	return fmt.Sprintf("set the label %s to one of: %s%s", v1alpha1.LabelPool, strings.Join(names, ", "), more)
}

func invalidAsk(m member) *Refusal {
	return &Refusal{ReasonInvalidAnnotation, fmt.Sprintf("annotation %s of namespace %q: %v", v1alpha1.AnnotationEgressIPs, m.Name, m.askErr)}
}

func disagree(name, what string, a, b member) *Refusal {
	return &Refusal{ReasonNamespacesDisagree, fmt.Sprintf("namespaces %q and %q of tenant %q ask for different %s; let them agree, or give them different tenant names", a.Name, b.Name, name, what)}
}

// holders says whose each address is. The protocol of the pools lets no two
// tenants hold one address, but hands can: then the older tenant has it.
func holders(list []*v1alpha1.EgressTenant) map[netip.Addr]string {
	sorted := slices.SortedFunc(slices.Values(list), func(a, b *v1alpha1.EgressTenant) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	owner := map[netip.Addr]string{}
	for _, t := range sorted {
		for _, a := range GrantOf(t).All() {
			if _, taken := owner[a]; !taken {
				owner[a] = t.Name
			}
		}
	}
	return owner
}

// rightful returns g if all of it belongs to the tenant. Otherwise the tenant
// counts as having nothing, so that it gets addresses of its own.
func (r *requests) rightful(name string, g allocate.Grant) allocate.Grant {
	for _, a := range g.All() {
		if r.holders[a] != name {
			return allocate.Grant{}
		}
	}
	return g
}
