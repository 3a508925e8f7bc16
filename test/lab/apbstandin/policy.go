// SPDX-License-Identifier: Apache-2.0

package apbstandin

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
)

// policy is what the stand-in needs of an AdminPolicyBasedExternalRoute.
type policy struct {
	name     string
	created  metav1.Time
	selector labels.Selector
	named    []string // the selected namespaces, if the selector names them; else nil
	hops     []netip.Addr
	err      error // the policy is malformed
}

// parsedPolicy remembers which version of an object was parsed.
type parsedPolicy struct {
	uid        types.UID
	generation int64
	policy     policy
}

// grant is what a policy was given: its namespaces get its hops.
type grant struct {
	namespaces []string
	hops       []netip.Addr
}

// readPolicies returns all policies, oldest first.
func (s *Standin) readPolicies() ([]policy, error) {
	objects, err := s.policies.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	parsed := make(map[string]parsedPolicy, len(objects))
	policies := make([]policy, 0, len(objects))
	for _, o := range objects {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("list policies: unexpected %T", o)
		}
		p, known := s.parsed[u.GetName()]
		if !known || p.uid != u.GetUID() || p.generation != u.GetGeneration() {
			p = parsedPolicy{uid: u.GetUID(), generation: u.GetGeneration(), policy: parse(u)}
		}
		parsed[u.GetName()] = p
		policies = append(policies, p.policy)
	}
	s.parsed = parsed
	slices.SortFunc(policies, func(a, b policy) int {
		if c := a.created.Compare(b.created.Time); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	return policies, nil
}

// parse never fails: what is wrong is the policy's err.
func parse(u *unstructured.Unstructured) policy {
	p := policy{name: u.GetName(), created: u.GetCreationTimestamp(), selector: labels.Nothing()}
	var object struct {
		Spec struct {
			From struct {
				NamespaceSelector metav1.LabelSelector `json:"namespaceSelector"`
			} `json:"from"`
			NextHops struct {
				Static []struct {
					IP string `json:"ip"`
				} `json:"static"`
				Dynamic []any `json:"dynamic"`
			} `json:"nextHops"`
		} `json:"spec"`
	}
	if p.err = runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &object); p.err != nil {
		return p
	}
	if len(object.Spec.NextHops.Dynamic) > 0 {
		p.err = errors.New("the stand-in of the lab knows no dynamic hops")
		return p
	}
	for _, h := range object.Spec.NextHops.Static {
		ip, err := netip.ParseAddr(h.IP)
		if err != nil {
			p.err = fmt.Errorf("could not parse routing external gw annotation value %q", h.IP)
			return p
		}
		if !slices.Contains(p.hops, ip) {
			p.hops = append(p.hops, ip)
		}
	}
	if p.selector, p.err = metav1.LabelSelectorAsSelector(&object.Spec.From.NamespaceSelector); p.err != nil {
		p.selector = labels.Nothing()
		return p
	}
	p.named = namesIn(p.selector)
	return p
}

// namesIn returns the namespaces that a selector asks for by name. With a
// thousand policies, trying each against each namespace takes too long.
func namesIn(selector labels.Selector) []string {
	requirements, _ := selector.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals:
			if r.Key() == corev1.LabelMetadataName {
				return r.ValuesUnsorted()
			}
		}
	}
	return nil
}

// grantAll brings the grants up to date with the policies, which come oldest
// first, and returns why some were refused. A refused policy keeps the grant
// that it had.
func grantAll(grants map[string]grant, policies []policy, namespaces []*corev1.Namespace) map[string]error {
	byName := make(map[string]*corev1.Namespace, len(namespaces))
	for _, n := range namespaces {
		byName[n.Name] = n
	}
	alive := make(map[string]bool, len(policies))
	for _, p := range policies {
		alive[p.name] = true
	}
	owner := map[string]string{} // namespace -> policy
	for name, g := range grants {
		if !alive[name] {
			delete(grants, name)
			continue
		}
		for _, ns := range g.namespaces {
			owner[ns] = name
		}
	}
	problems := map[string]error{}
	for _, p := range policies {
		targets := p.targets(byName, namespaces)
		if p.err != nil {
			problems[p.name] = p.err
			continue
		}
		if other, taken := conflict(p.name, targets, owner); other != "" {
			problems[p.name] = fmt.Errorf("failed to update policy %s: namespaces %v are already affected by another policy: %s", p.name, taken, other)
			continue
		}
		for _, ns := range grants[p.name].namespaces {
			delete(owner, ns)
		}
		for _, ns := range targets {
			owner[ns] = p.name
		}
		grants[p.name] = grant{namespaces: targets, hops: p.hops}
	}
	return problems
}

func conflict(name string, targets []string, owner map[string]string) (other string, taken []string) {
	for _, ns := range targets {
		if o := owner[ns]; o != "" && o != name {
			other, taken = o, append(taken, ns)
		}
	}
	return other, taken
}

// targets returns the names of the selected namespaces.
func (p policy) targets(byName map[string]*corev1.Namespace, all []*corev1.Namespace) []string {
	var targets []string
	if p.named != nil {
		for _, name := range p.named {
			if n := byName[name]; n != nil && p.selector.Matches(labels.Set(n.Labels)) {
				targets = append(targets, name)
			}
		}
		return targets
	}
	for _, n := range all {
		if p.selector.Matches(labels.Set(n.Labels)) {
			targets = append(targets, n.Name)
		}
	}
	return targets
}

// wantedRoutes returns, by node, the hops of each pod that a policy covers.
func (s *Standin) wantedRoutes() (map[string]routes, error) {
	hops := map[string][]netip.Addr{}
	for _, g := range s.applied {
		for _, ns := range g.namespaces {
			hops[ns] = g.hops
		}
	}
	pods, err := s.pods.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	want := map[string]routes{}
	for _, p := range pods {
		via := hops[p.Namespace]
		if len(via) == 0 || p.Spec.NodeName == "" || p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		if want[p.Spec.NodeName] == nil {
			want[p.Spec.NodeName] = routes{}
		}
		for _, ip := range p.Status.PodIPs {
			addr, err := netip.ParseAddr(ip.IP)
			if err != nil {
				continue // the API server lets none pass
			}
			if same := sameFamily(addr, via); len(same) > 0 {
				want[p.Spec.NodeName][addr] = same
			}
		}
	}
	return want, nil
}

func sameFamily(pod netip.Addr, hops []netip.Addr) []netip.Addr {
	var same []netip.Addr
	for _, h := range hops {
		if h.Is4() == pod.Is4() {
			same = append(same, h)
		}
	}
	return same
}

// messages returns what each node says of each policy.
func (s *Standin) messages(policies []policy, problems, failed map[string]error) map[string]map[string]string {
	messages := make(map[string]map[string]string, len(policies))
	for _, p := range policies {
		ips := make([]string, 0, len(p.hops))
		for _, h := range p.hops {
			ips = append(ips, h.String())
		}
		slices.Sort(ips)
		byNode := make(map[string]string, len(s.kernels))
		for node := range s.kernels {
			err := problems[p.name]
			if err == nil {
				err = failed[node]
			}
			byNode[node] = fmt.Sprintf("%s: configured external gateway IPs: %s", node, strings.Join(ips, ","))
			if err != nil {
				byNode[node] = fmt.Sprintf("%s: %s %s: %v", node, node, failureText, err)
			}
		}
		messages[p.name] = byNode
	}
	return messages
}
