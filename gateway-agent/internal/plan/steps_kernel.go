// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// SetGuard makes the whole guard table anew, in one transaction.
type SetGuard struct{ Guard Guard }

// DelGuard removes the guard table.
type DelGuard struct{}

// SetElements replaces the elements of a set of the guard, in one transaction.
type SetElements struct {
	Set      string
	Elements []string
}

// AddElement adds to a set of the guard.
type AddElement struct{ Of, Set, Element string }

// DelElement removes from a set of the guard.
type DelElement struct{ Of, Set, Element string }

// SetSysctl writes a sysctl.
type SetSysctl struct{ Key, Value string }

// SetChain makes a chain hold exactly Rules, in their order.
type SetChain struct {
	ID    ChainID
	Rules []string
}

// NewChain makes an empty chain.
type NewChain struct{ ID ChainID }

// DelChain removes a chain with all its rules. Nothing may jump to it.
type DelChain struct{ ID ChainID }

// AddRule appends a rule to a chain of ours.
type AddRule struct {
	Of   string
	ID   ChainID
	Rule string
}

// DelRule removes a rule from a chain of ours.
type DelRule struct {
	Of   string
	ID   ChainID
	Rule string
}

// SetHook makes Rule the first rule of a built-in chain, after removing Stale.
// An empty Rule removes only.
type SetHook struct {
	ID    ChainID
	Rule  string
	Stale []string
}

// MakeLink makes a link, which is down, or mends one that exists, and names its
// tenant. While a link is down, the NIC takes no frame for it.
type MakeLink struct{ Link Link }

// RaiseLink sets a link up.
type RaiseLink struct{ Of, Name string }

// DelLink removes a link with its addresses.
type DelLink struct{ Of, Name string }

// AddAddr adds an address, marked as ours.
type AddAddr struct {
	Of   string
	Addr Addr
}

// DelAddr removes an address that is marked as ours.
type DelAddr struct {
	Of   string
	Addr Addr
}

// SetRoute adds a route, or replaces ours to the same destination. Without
// Replace it fails if anybody's route to the destination exists.
type SetRoute struct {
	Route   Route
	Replace bool
}

// DelRoute removes a route of ours.
type DelRoute struct{ Route Route }

// IsRule tells the steps that iptables-restore can carry out, several at once.
func IsRule(s Step) bool { return RestoreLines(s) != nil }

// RuleFamily returns the family and table that a rule step concerns.
func RuleFamily(s Step) (tenant.Family, string) {
	switch s := s.(type) {
	case SetChain:
		return s.ID.Family, s.ID.Table
	case NewChain:
		return s.ID.Family, s.ID.Table
	case DelChain:
		return s.ID.Family, s.ID.Table
	case AddRule:
		return s.ID.Family, s.ID.Table
	case DelRule:
		return s.ID.Family, s.ID.Table
	case SetHook:
		return s.ID.Family, s.ID.Table
	}
	return 0, ""
}

// RestoreLines returns the lines of iptables-restore --noflush input that carry
// out a rule step within its table, or nil for any other step. Declaring a
// chain that exists empties it.
func RestoreLines(s Step) []string {
	switch s := s.(type) {
	case SetChain:
		out := []string{":" + s.ID.Name + " - [0:0]"}
		for _, r := range s.Rules {
			out = append(out, "-A "+s.ID.Name+" "+r)
		}
		return out
	case NewChain:
		return []string{":" + s.ID.Name + " - [0:0]"}
	case DelChain:
		return []string{"-F " + s.ID.Name, "-X " + s.ID.Name}
	case AddRule:
		return []string{"-A " + s.ID.Name + " " + s.Rule}
	case DelRule:
		return []string{"-D " + s.ID.Name + " " + s.Rule}
	case SetHook:
		var out []string
		for _, r := range s.Stale {
			out = append(out, "-D "+s.ID.Name+" "+r)
		}
		if s.Rule != "" {
			out = append(out, "-I "+s.ID.Name+" 1 "+s.Rule)
		}
		return out
	}
	return nil
}

// NFTLines returns the lines of nft -f input that carry out a step of the guard
// or of the neighbour table, or nil for any other step.
func NFTLines(s Step) []string {
	const table = "inet " + GuardTable
	switch s := s.(type) {
	case SetGuard:
		return guardLines(s.Guard)
	case DelGuard:
		return []string{"delete table " + table}
	case SetElements:
		out := []string{"flush set " + table + " " + s.Set}
		if len(s.Elements) > 0 {
			out = append(out, "add element "+table+" "+s.Set+" { "+quoted(s.Elements)+" }")
		}
		return out
	case AddElement:
		return []string{"add element " + table + " " + s.Set + " { " + quoted([]string{s.Element}) + " }"}
	case DelElement:
		return []string{"delete element " + table + " " + s.Set + " { " + quoted([]string{s.Element}) + " }"}
	}
	return neighbourLines(s)
}

// quoted lists elements as nft takes them: an interface name, which comes first
// in an element, may look like one of nft's own words.
func quoted(elements []string) string {
	out := slices.Clone(elements)
	for i, e := range out {
		name, _, several := strings.Cut(e, " ")
		if _, err := netip.ParseAddr(name); several && err != nil && !strings.HasPrefix(name, "0x") {
			out[i] = `"` + name + `"` + e[len(name):]
		}
	}
	return strings.Join(out, ", ")
}

// guardLines is the transaction that replaces the table; adding it first makes
// deleting it legal where it does not exist.
func guardLines(g Guard) []string {
	const table = "inet " + GuardTable
	out := []string{"add table " + table, "delete table " + table, "add table " + table}
	types, chains := GuardSetTypes(), GuardChains()
	for _, name := range sorted(g.Sets) {
		elements := ""
		if list := sorted(g.Sets[name]); len(list) > 0 {
			elements = " elements = { " + quoted(list) + " }"
		}
		kind := "set "
		if isMap(name) {
			kind = "map "
		}
		out = append(out, "add "+kind+table+" "+name+" { "+types[name]+elements+" }")
	}
	for _, name := range sorted(chains) {
		out = append(out, strings.TrimSpace("add chain "+table+" "+name+" { "+chains[name])+" }")
	}
	for _, r := range g.Rules {
		out = append(out, "add rule "+table+" "+r.Chain+" "+r.Text)
	}
	return out
}

func tool(f tenant.Family, table string) string {
	if f == tenant.IPv6 {
		return "ip6tables -w -t " + table + " "
	}
	return "iptables -w -t " + table + " "
}

func (s SetChain) String() string { return ruleCommand(s) }
func (s NewChain) String() string { return tool(s.ID.Family, s.ID.Table) + "-N " + s.ID.Name }
func (s DelChain) String() string { return ruleCommand(s) }
func (s AddRule) String() string  { return ruleCommand(s) }
func (s DelRule) String() string  { return ruleCommand(s) }
func (s SetHook) String() string  { return ruleCommand(s) }

// ruleCommand writes the lines of a rule step as commands.
func ruleCommand(s Step) string {
	f, table := RuleFamily(s)
	lines := slices.Clone(RestoreLines(s))
	for i, l := range lines {
		if name, ok := strings.CutPrefix(l, ":"); ok {
			l = "-F " + strings.TrimSuffix(name, " - [0:0]")
		}
		lines[i] = tool(f, table) + l
	}
	return strings.Join(lines, "; ")
}

func (s SetGuard) String() string {
	return "nft add table inet " + GuardTable + "  # with all chains, sets and rules"
}
func (s DelGuard) String() string    { return "nft " + NFTLines(s)[0] }
func (s SetElements) String() string { return "nft '" + strings.Join(NFTLines(s), "; ") + "'" }
func (s AddElement) String() string  { return "nft '" + NFTLines(s)[0] + "'" }
func (s DelElement) String() string  { return "nft '" + NFTLines(s)[0] + "'" }
func (s SetSysctl) String() string {
	return "sysctl -w " + strings.ReplaceAll(s.Key, "/", ".") + "=" + s.Value
}
func (s MakeLink) String() string {
	l := s.Link
	ipv6 := ""
	if !l.IPv6 {
		ipv6 = fmt.Sprintf(" && sysctl -w net.ipv6.conf.%s.disable_ipv6=1", l.Name)
	}
	return fmt.Sprintf("ip link add link %s name %s address %s type macvlan mode private bcqueuelen 0%s && ip link set %s alias %s",
		l.Parent, l.Name, l.MAC, ipv6, l.Name, l.Tenant)
}
func (s RaiseLink) String() string { return fmt.Sprintf("ip link set %s up", s.Name) }
func (s DelLink) String() string   { return "ip link delete " + s.Name }
func (s AddAddr) String() string {
	label := " nodad preferred_lft 0"
	if s.Addr.IP.Is4() {
		label = ""
		if _, tenantLink := LinkNumber(s.Addr.Dev); !tenantLink {
			label = " label " + AddrLabel(s.Addr.Dev)
		}
	}
	return fmt.Sprintf("ip address add %s dev %s%s", host(s.Addr.IP), s.Addr.Dev, label)
}
func (s DelAddr) String() string {
	return fmt.Sprintf("ip address delete %s dev %s", host(s.Addr.IP), s.Addr.Dev)
}
func (s SetRoute) String() string {
	verb := "add"
	if s.Replace {
		verb = "replace"
	}
	return fmt.Sprintf("ip route %s %s via %s dev %s proto %d", verb, s.Route.Dst, s.Route.Via, s.Route.Dev, Protocol)
}
func (s DelRoute) String() string {
	return fmt.Sprintf("ip route delete %s via %s dev %s proto %d", s.Route.Dst, s.Route.Via, s.Route.Dev, Protocol)
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
