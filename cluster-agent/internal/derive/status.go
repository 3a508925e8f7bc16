// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"egress-gateway.io/cluster-agent/api/v1alpha1"
	"egress-gateway.io/shared/tenant"
)

// Verdict is the content of a condition.
type Verdict struct {
	Status          metav1.ConditionStatus
	Reason, Message string
}

func yes(reason, format string, args ...any) Verdict {
	return Verdict{metav1.ConditionTrue, reason, fmt.Sprintf(format, args...)}
}

// No returns a verdict that is not met.
func No(reason, format string, args ...any) Verdict {
	return Verdict{metav1.ConditionFalse, reason, fmt.Sprintf(format, args...)}
}

// The reasons of conditions that are not refusals.
const (
	ReasonAllocated     = "Allocated"
	ReasonNotAllocated  = "NotAllocated"
	ReasonPending       = "Pending"
	ReasonProgrammed    = "Programmed"
	ReasonNoGateway     = "NoGateway"
	ReasonGatewaySilent = "GatewaySilent"
	ReasonNotProgrammed = "ProgrammingFailed"
	ReasonReady         = "Ready"
)

// Allocated judges an EgressTenant against what was asked for; why is the
// refusal of what was asked, or nil.
func Allocated(spec v1alpha1.EgressTenantSpec, w Want, why *Refusal, out Output) Verdict {
	has := fmt.Sprintf("egress %s by way of %s from pool %q", join(spec.EgressIPs), join(spec.GatewayIPs), spec.Pool)
	held := len(spec.EgressIPs) > 0
	switch {
	case why != nil && held:
		return No(why.Reason, "%s. Until then it keeps %s", why.Message, has)
	case why != nil:
		return No(why.Reason, "%s", why.Message)
	case !held:
		return No(ReasonPending, "waiting for an address of pool %q", w.Pool)
	}
	p, known := out.Pools[spec.Pool]
	if !known {
		return yes(ReasonAllocated, "%s, which does not exist any more; it stays as it is", has)
	}
	for _, a := range Addrs(spec.EgressIPs) {
		if !p.Egress.Covers(a) {
			return yes(ReasonAllocated, "%s, which does not contain %s any more; it stays as it is", has, a)
		}
	}
	if lacking := Lacking(spec, out.Families); len(lacking) > 0 {
		return withoutFamily(has, lacking[0], p)
	}
	return yes(ReasonAllocated, "%s", has)
}

func join(list []v1alpha1.Address) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = string(a)
	}
	return strings.Join(texts, ", ")
}

// Gateway is a gateway's report and whether it is recent.
type Gateway struct {
	tenant.Summary
	Alive bool
}

// Programmed judges what the gateways report of a tenant. Only the
// acknowledgement of the very object and generation, by a gateway of the
// tenant's group, counts. The first result is the gateway that serves it.
func Programmed(t *v1alpha1.EgressTenant, statuses []tenant.Status, gateways map[string]Gateway) (string, Verdict) {
	group, generation := t.Spec.GatewayGroup, t.Generation
	var silent, failed, behind *tenant.Status
	for _, s := range slices.SortedFunc(slices.Values(statuses), func(a, b tenant.Status) int { return strings.Compare(a.Gateway, b.Gateway) }) {
		gw, known := gateways[s.Gateway]
		if !known || gw.Group != group {
			continue
		}
		this := s.UID == string(t.UID) && s.Generation == generation
		switch {
		case this && s.Programmed && gw.Alive:
			if s.Reason != "" { // a warning
				return s.Gateway, yes(ReasonProgrammed, "gateway %q serves generation %d; %s: %s", s.Gateway, generation, s.Reason, bounded(s.Message))
			}
			return s.Gateway, yes(ReasonProgrammed, "gateway %q serves generation %d", s.Gateway, generation)
		case this && s.Programmed:
			silent = &s
		case this && gw.Alive:
			failed = &s
		case gw.Alive:
			behind = &s
		}
	}
	switch {
	case failed != nil:
		reason := failed.Reason
		if !validReason(reason) {
			reason = ReasonNotProgrammed
		}
		return "", No(reason, "gateway %q: %s", failed.Gateway, bounded(failed.Message))
	case silent != nil:
		return silent.Gateway, Verdict{metav1.ConditionUnknown, ReasonGatewaySilent, fmt.Sprintf("gateway %q serves the tenant, but has not been heard of for a minute; it may still forward", silent.Gateway)}
	case !slices.ContainsFunc(aliveOf(gateways), func(g Gateway) bool { return g.Group == group }):
		return "", No(ReasonNoGateway, "no gateway of group %q is alive; start one, or correct gatewayGroup of pool %q", group, t.Spec.Pool)
	case behind != nil:
		return behind.Gateway, No(ReasonPending, "waiting for gateway %q to serve generation %d", behind.Gateway, generation)
	}
	return "", No(ReasonPending, "waiting for a gateway of group %q to serve generation %d", group, generation)
}

func aliveOf(gateways map[string]Gateway) []Gateway {
	var out []Gateway
	for _, g := range gateways {
		if g.Alive {
			out = append(out, g)
		}
	}
	return out
}

// validReason says whether the API server accepts s as a condition's reason.
func validReason(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i, c := range s {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '_')) {
			return false
		}
	}
	return true
}

// PoolVerdicts returns the conditions Ready and Conflict of a pool.
func (p Pool) PoolVerdicts() (ready, conflict Verdict) {
	conflict = No("NoConflict", "no range is in conflict with another pool, a node or a gateway")
	if len(p.Conflicts) > 0 {
		const shown = 5
		text := strings.Join(p.Conflicts[:min(shown, len(p.Conflicts))], "; ")
		if n := len(p.Conflicts) - shown; n > 0 {
			text += fmt.Sprintf("; and %d more", n)
		}
		conflict = yes(ReasonPoolConflict, "not allocated from: %s", text)
	}
	switch why := p.refusal(); {
	case why != nil:
		ready = No(why.Reason, "%s", why.Message)
	case p.Invalid != "":
		ready = No(ReasonInvalidRange, "some ranges are not used: %s", bounded(p.Invalid))
	case len(p.Conflicts) > 0:
		ready = No(ReasonPoolConflict, "some ranges are not used: %s", first(p.Conflicts))
	default:
		ready = yes("Usable", "addresses can be allocated")
	}
	return ready, conflict
}
