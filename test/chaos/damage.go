// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// damage is something that a hand does to the gateway.
type damage struct {
	what    string
	command string
	// healed succeeds once it is as it was. For what belongs to one tenant, which
	// may leave meanwhile, there is none; the end of the run looks at all.
	healed string
	// show prints what has to be again as it was before, word for word; for what
	// changes with tenants or nodes there is none.
	show string
	// mayFail is set where the thing may have gone by itself a moment ago.
	mayFail bool
	// interrupts says that flows of all tenants stop until it is healed.
	interrupts bool
}

// drawDamage draws one of what is there now. It is empty if there is nothing.
func (g *gatewayDriver) drawDamage() (damage, error) {
	kinds := []func() (damage, error){g.guardTable, g.guardChain, g.guardMap, g.chain, g.chain, g.hook, g.link, g.linkDown, g.egressAddress, g.route}
	return kinds[g.random.IntN(len(kinds))]()
}

// Listings without counters, and of a table without what its sets hold, which
// changes with the tenants.
const (
	listGuard = "nft --stateless --terse list table inet egw-guard"
	listChain = "nft --stateless list chain inet egw-guard "
)

// holdGuardsOpen empties the chains that refuse what is not translated, before and
// behind NAT, again and again until end. Either would do without the other.
func (w *world) holdGuardsOpen(end context.Context) error {
	const flush = "nft flush chain inet egw-guard exit; iptables -w -F EGW-OUT; ip6tables -w -F EGW-OUT"
	for end.Err() == nil {
		w.count("the guards are taken away")
		if out, err := w.RunInGateway("sh", "-ec", flush); err != nil {
			return fmt.Errorf("take the guards away: %w: %s", err, out)
		}
		pause(end, 20*time.Millisecond)
	}
	return nil
}

func (g *gatewayDriver) guardTable() (damage, error) {
	return damage{what: "the nftables guard, whole", command: "nft delete table inet egw-guard", show: listGuard}, nil
}

func (g *gatewayDriver) guardChain() (damage, error) {
	chain := []string{"exit", "exit-out", "denied", "input"}[g.random.IntN(4)]
	return damage{what: "a chain of the nftables guard", command: "nft flush chain inet egw-guard " + chain, show: listChain + chain}, nil
}

var savedRule = regexp.MustCompile(`^-A (\S+) (.*)$`)

// tools are the commands of one family.
func (g *gatewayDriver) tools() string { return []string{"iptables", "ip6tables"}[g.random.IntN(2)] }

// rules returns what iptables-save shows: lines of "table rule".
func (g *gatewayDriver) rules(tool string) ([][2]string, error) {
	out, err := g.RunInGateway(tool + "-save")
	if err != nil {
		return nil, err
	}
	var list [][2]string
	table := ""
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		} else if savedRule.MatchString(line) {
			list = append(list, [2]string{table, line})
		}
	}
	return list, nil
}

// guardMap empties a map that answers ahead of the trees: these go on alone. It
// is healed once it knows the tenants that stay all the time.
func (g *gatewayDriver) guardMap() (damage, error) {
	kind, family := []string{"links", "translate"}[g.random.IntN(2)], []string{"4", "6"}[g.random.IntN(2)]
	list := "nft list map inet egw-guard " + kind + family
	d := damage{what: "the elements of a map of nftables", command: "nft flush map inet egw-guard " + kind + family}
	links, err := g.RunInGateway("ip", "-d", "-o", "link", "show", "type", "macvlan")
	if err != nil {
		return damage{}, err
	}
	var want []string
	for _, m := range g.members[:steadyTenants] {
		for line := range strings.Lines(links) {
			if name, ok := linkName(line); ok && kind == "links" && m.has(line) {
				want = append(want, fmt.Sprintf("%q : ", name))
			}
		}
		if t, ok := g.watcher.tenant(m.name); ok && kind == "translate" {
			for _, a := range t.Addresses() {
				if a.Is6() == (family == "6") {
					want = append(want, fmt.Sprintf(" : %s[ ,]", a))
				}
			}
		}
	}
	if len(want) < steadyTenants {
		return damage{}, fmt.Errorf("%d elements of map %s%s are expected, of %d tenants", len(want), kind, family, steadyTenants)
	}
	for i, e := range want {
		want[i] = "echo \"$map\" | grep -q '" + e + "'"
	}
	d.healed = "map=$(" + list + ") && " + strings.Join(want, " && ")
	return d, nil
}

// chain empties one of the agent's iptables chains.
func (g *gatewayDriver) chain() (damage, error) {
	tool := g.tools()
	rules, err := g.rules(tool)
	if err != nil {
		return damage{}, err
	}
	var chains []string
	for _, r := range rules {
		if name := savedRule.FindStringSubmatch(r[1])[1]; strings.HasPrefix(name, "EGW-") {
			if c := r[0] + " " + name; !slices.Contains(chains, c) {
				chains = append(chains, c)
			}
		}
	}
	if len(chains) == 0 {
		return damage{}, nil
	}
	table, name, _ := strings.Cut(chains[g.random.IntN(len(chains))], " ")
	list := fmt.Sprintf("%s -w -t %s -S %s", tool, table, name)
	d := damage{what: "the rules of a chain of table " + table, mayFail: true, command: fmt.Sprintf("%s -w -t %s -F %s", tool, table, name)}
	if sameForAll(name) {
		d.show = list
	} else { // its last tenant may have left, and the chain with it
		d.healed = list + " | grep -q -e -A || ! " + list
	}
	return d, nil
}

// sameForAll tells the chains that hold the same whatever tenants and nodes there
// are: all but the branches of the trees, and the list of nodes.
func sameForAll(chain string) bool {
	switch chain {
	case "EGW-MARK", "EGW-SNAT", "EGW-FWD", "EGW-OUT", "EGW-EXT", "EGW-REJECT":
		return true
	}
	return false
}

// hook deletes a jump from a chain of the kernel's to one of the agent's.
func (g *gatewayDriver) hook() (damage, error) {
	tool := g.tools()
	rules, err := g.rules(tool)
	if err != nil {
		return damage{}, err
	}
	rules = slices.DeleteFunc(rules, func(r [2]string) bool {
		return strings.HasPrefix(r[1], "-A EGW-") || !strings.Contains(r[1], "-j EGW-")
	})
	if len(rules) == 0 {
		return damage{}, nil
	}
	r := rules[g.random.IntN(len(rules))]
	rule := strings.TrimPrefix(r[1], "-A ")
	return damage{what: "the jump from " + savedRule.FindStringSubmatch(r[1])[1] + " in table " + r[0],
		command: fmt.Sprintf("%s -w -t %s -D %s", tool, r[0], rule), healed: fmt.Sprintf("%s -w -t %s -C %s", tool, r[0], rule)}, nil
}

// tenantLink returns a link of a tenant that has no long flow, or nothing.
func (g *gatewayDriver) tenantLink() (string, error) {
	out, err := g.RunInGateway("ip", "-d", "-o", "link", "show", "type", "macvlan")
	if err != nil {
		return "", err
	}
	var links []string
	for line := range strings.Lines(out) {
		if name, ok := linkName(line); ok && !g.mentionsSteady(line) {
			links = append(links, name)
		}
	}
	if len(links) == 0 {
		return "", nil
	}
	return links[g.random.IntN(len(links))], nil
}

func (g *gatewayDriver) mentionsSteady(line string) bool {
	return slices.ContainsFunc(g.members[:steadyTenants], func(m *member) bool { return m.has(line) })
}

// has tells whether a line of "ip link" is about the link of m.
func (m *member) has(line string) bool { return strings.Contains(line, "/"+m.name) }

func linkName(line string) (string, bool) {
	_, rest, ok := strings.Cut(line, ": ")
	name, _, at := strings.Cut(rest, "@")
	return name, ok && at
}

func (g *gatewayDriver) link() (damage, error) {
	name, err := g.tenantLink()
	if err != nil || name == "" {
		return damage{}, err
	}
	return damage{what: "a tenant's link", command: "ip link delete " + name, mayFail: true}, nil
}

func (g *gatewayDriver) linkDown() (damage, error) {
	name, err := g.tenantLink()
	if err != nil || name == "" {
		return damage{}, err
	}
	return damage{what: "a tenant's link set down", command: "ip link set " + name + " down", mayFail: true}, nil
}

func (g *gatewayDriver) egressAddress() (damage, error) {
	var list []string
	for _, m := range g.members[steadyTenants:] {
		if t, ok := g.watcher.tenant(m.name); ok {
			for _, a := range t.Addresses() {
				list = append(list, fmt.Sprintf("%s/%d", a, a.BitLen()))
			}
		}
	}
	if len(list) == 0 {
		return damage{}, nil
	}
	return damage{what: "an egress address", mayFail: true,
		command: "ip address delete " + list[g.random.IntN(len(list))] + " dev enp7s0"}, nil
}

// route deletes the way back to a node's pods: all tenants miss it.
func (g *gatewayDriver) route() (damage, error) {
	node, ok := g.Node([]string{"node1", "node2"}[g.random.IntN(2)])
	if !ok {
		return damage{}, nil
	}
	subnet := []netip.Prefix{node.Subnet, node.Subnet6}[g.random.IntN(2)].String()
	family := "-4"
	if strings.Contains(subnet, ":") {
		family = "-6"
	}
	return damage{what: "the route to a node's pods", command: "ip " + family + " route delete " + subnet + " proto 97",
		healed: "ip " + family + " route show " + subnet + " proto 97 | grep -q via", interrupts: true}, nil
}
