// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// foreignRoutes knows everything that routes namespaces and is not ours.
type foreignRoutes struct {
	list []struct {
		selector labels.Selector
		why      Refusal
	}
}

func newForeignRoutes(in Input) *foreignRoutes {
	f := &foreignRoutes{}
	for _, r := range in.Routes {
		if !r.Ours {
			f.add(r.Selector, Refusal{ReasonOtherRoute, fmt.Sprintf("AdminPolicyBasedExternalRoute %q selects this namespace already, and OVN accepts only one; remove the namespace from it, or remove the label", r.Name)})
		}
	}
	for _, e := range in.EgressIPs {
		f.add(e.Selector, Refusal{ReasonEgressIP, fmt.Sprintf("EgressIP %q selects this namespace already, and the two exclude each other; remove the namespace from it, or remove the label", e.Name)})
	}
	return f
}

// add ignores selectors that are invalid: OVN can not use them either.
func (f *foreignRoutes) add(s *metav1.LabelSelector, why Refusal) {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || s == nil {
		return
	}
	f.list = append(f.list, struct {
		selector labels.Selector
		why      Refusal
	}{selector, why})
}

// selecting says what else routes the namespace, or nil.
func (f *foreignRoutes) selecting(ns Namespace) *Refusal {
	if len(f.list) == 0 {
		return nil
	}
	set := labels.Set(ns.Labels)
	if set[metaName] == "" {
		// The API server sets it on every namespace; be right without it, too.
		set = labels.Merge(set, labels.Set{metaName: ns.Name})
	}
	for _, e := range f.list {
		if e.selector.Matches(set) {
			return &e.why
		}
	}
	return nil
}

const metaName = "kubernetes.io/metadata.name"

// RouteSelector is the selector of the route of a tenant with these members.
func RouteSelector(members []Namespace) *metav1.LabelSelector {
	if len(members) == 1 {
		return &metav1.LabelSelector{MatchLabels: map[string]string{metaName: members[0].Name}}
	}
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Name
	}
	slices.Sort(names)
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
		Key: metaName, Operator: metav1.LabelSelectorOpIn, Values: names,
	}}}
}

// The two texts of a status message of OVN-Kubernetes.
const (
	messageApplied = "configured external gateway IPs: "
	messageFailed  = "failed to apply policy"
	// globalZone is the only zone of a cluster without interconnect.
	globalZone = "global"
)

// The reasons of the condition RouteAccepted.
const (
	ReasonRouteAccepted = "Accepted"
	ReasonRoutePending  = "RoutePending"
	ReasonRouteFailed   = "RouteFailed"
	ReasonRouteAPI      = "RouteAPIMissing"
)

// Accepted says whether every node routes to hops, and if not, why. A status
// Success alone is no proof: it may be older than the hops.
func Accepted(r Route, hops []netip.Addr, nodes []string) (ok bool, reason, message string) {
	texts := make([]string, len(hops))
	for i, h := range hops {
		texts[i] = h.String()
	}
	slices.Sort(texts)
	want := strings.Join(texts, ",")
	done := map[string]bool{}
	for _, m := range r.Messages {
		node, text, _ := strings.Cut(m, ":")
		if strings.Contains(text, messageFailed) {
			return false, ReasonRouteFailed, bounded(m)
		}
		if got, found := strings.CutPrefix(strings.TrimSpace(text), messageApplied); found && got == want {
			done[node] = true
		}
	}
	if r.Status == "Fail" {
		return false, ReasonRouteFailed, bounded("OVN-Kubernetes failed to apply the route: " + strings.Join(r.Messages, "; "))
	}
	var missing []string
	if !done[globalZone] {
		for _, n := range nodes {
			if !done[n] {
				missing = append(missing, n)
			}
		}
	}
	switch {
	case len(missing) > 0:
		return false, ReasonRoutePending, fmt.Sprintf("waiting for %d of %d nodes to route to %s: %s", len(missing), len(nodes), want, some(missing))
	case r.Status != "Success":
		return false, ReasonRoutePending, fmt.Sprintf("all %d nodes route to %s; waiting for OVN-Kubernetes to confirm it", len(nodes), want)
	}
	return true, ReasonRouteAccepted, fmt.Sprintf("%d nodes route to %s", len(nodes), want)
}

// some lists the first few names, so that messages stay readable.
func some(names []string) string {
	const shown = 5
	if len(names) > shown {
		return strings.Join(names[:shown], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// bounded keeps foreign texts within what a condition's message may hold.
func bounded(s string) string {
	const limit = 1000
	if len(s) > limit {
		return strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
