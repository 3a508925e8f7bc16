// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"

	"egress-gateway.io/shared/tenant"
)

// setRefused counts the refused packets of tenants: link . reason; pastLink . mark
// for those that the exit guard dropped although no link tells the tenant;
// fromOutside . mark for those that came from outside for an address of a
// tenant's. The kernel fills it.
const (
	setRefused  = "refused"
	pastLink    = "past"
	fromOutside = "outside"
)

// SetRefused names that set.
func SetRefused() string { return setRefused }

// Reason is why a packet of a tenant was refused, as the set of them has it.
type Reason uint32

// The reasons.
const (
	RefusedInvalid      Reason = iota + 1 // connection tracking can make nothing of it
	RefusedUntranslated                   // it would leave with a pod's address
	RefusedUnknown                        // the same, and no pod network holds the source
	RefusedExit                           // by the exit guard: a leak prevented
	RefusedInput                          // for the VM itself
	RefusedOutside                        // from outside, for the tenant's egress or gateway IP
)

// String is the word for metrics and status; those of the forward rules are
// those of Refusal.
func (r Reason) String() string {
	switch r {
	case RefusedInvalid:
		return "invalid"
	case RefusedUntranslated:
		return "untranslated"
	case RefusedUnknown:
		return "unknown_source"
	case RefusedExit:
		return "exit_guard"
	case RefusedInput:
		return "input_guard"
	case RefusedOutside:
		return "from_outside"
	}
	return "other"
}

// RefusedOf reads an element of the set: the tenant's number, 0 if it is no
// tenant's.
func RefusedOf(mask uint32, link string, value uint32) (number int, why Reason) {
	if n, ok := LinkNumber(link); ok {
		return n, Reason(value)
	}
	switch link {
	case pastLink:
		return NumberOf(mask, value), RefusedExit
	case fromOutside:
		return NumberOf(mask, value), RefusedOutside
	}
	return 0, 0
}

// refusedBy counts a packet from a tenant's link.
func refusedBy(r Reason) string {
	return fmt.Sprintf("update @%s { iifname . %#x counter }", setRefused, uint32(r))
}

// denied is where the exit guard's drops end. What can not be counted, since it
// has no connection or the set is full, is dropped all the same.
func (g *guardBuilder) denied() {
	g.add(GuardDenied, "of a link", g.link, refusedBy(RefusedExit))
	g.add(GuardDenied, "past the link", `iifname != "`+LinkPrefix+`*" `+g.mark+" != 0", "update @"+setRefused+` { "`+pastLink+`" . `+g.mark+" counter }")
	g.add(GuardDenied, "dropped", "", "drop")
}

// wrong counts by reason what the chains EGW-OUT and EGW-REJECT refuse a moment
// later, in their order. New connections come here unless they are marked, have
// sent nothing before, and go where tenants may go. One exception is not worth
// what looking for it would cost each new connection: pods as destinations.
func (g *guardBuilder) wrong() {
	g.add(GuardWrong, "invalid", "ct state invalid", refusedBy(RefusedInvalid)+" accept")
	for _, f := range tenant.Families() {
		g.add(GuardWrong, "pod "+f.String(), ipWord(f)+" saddr @"+setName(setPods, f), refusedBy(RefusedUntranslated)+" accept")
	}
	g.add(GuardWrong, "unknown", g.link, refusedBy(RefusedUnknown))
}
