// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"strconv"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// binding lets new connections with a mark leave with an address.
type binding struct {
	mark uint32
	ip   netip.Addr
}

// bound returns the bindings that the trees and the maps hold, each with its
// tenant; "" if that of a map is not known.
func (s State) bound(mask uint32) map[binding]string {
	out := boundIn(s.Chains)
	for _, f := range tenant.Families() {
		for e := range s.Guard.Sets[setName(mapTranslate, f)] {
			b := parseTranslate(e)
			if _, known := out[b]; !known && b.ip.IsValid() {
				out[b] = s.Links[LinkName(NumberOf(mask, b.mark))].Tenant
			}
		}
	}
	return out
}

// boundIn returns the bindings that the SNAT trees hold, each with its tenant.
func boundIn(chains map[ChainID][]string) map[binding]string {
	out := make(map[binding]string)
	for id, rules := range chains {
		if !isTree(id.Name, chainSTree) {
			continue
		}
		for _, r := range rules {
			if b, ok := parseBinding(r); ok {
				out[b] = ruleTenant(r)
			}
		}
	}
	return out
}

// isTree tells whether name is the root or a branch of the tree at root.
func isTree(name, root string) bool {
	digits, ok := strings.CutPrefix(name, root)
	if !ok || len(digits) > 2 {
		return false
	}
	return strings.Trim(digits, "0123456789abcdef") == ""
}

// parseBinding reads a leaf rule of the SNAT tree.
func parseBinding(rule string) (binding, bool) {
	mark, ok := ruleValue(rule, "--mark")
	to, ok2 := ruleValue(rule, "--to-source")
	ip, err := netip.ParseAddr(to)
	m, ok3 := parseMark(mark)
	return binding{m, ip}, ok && ok2 && ok3 && err == nil
}

// ruleMark returns the mark that a leaf rule of either tree is about.
func ruleMark(rule string) (uint32, bool) {
	if v, ok := ruleValue(rule, "--set-xmark"); ok {
		return parseMark(v)
	}
	if _, leaf := ruleValue(rule, "--to-source"); !leaf {
		return 0, false
	}
	v, _ := ruleValue(rule, "--mark")
	return parseMark(v)
}

func parseMark(s string) (uint32, bool) {
	value, _, _ := strings.Cut(s, "/")
	m, err := strconv.ParseUint(value, 0, 32)
	return uint32(m), err == nil
}

// ruleTenant returns the tenant that the comment of a leaf rule names.
func ruleTenant(rule string) string {
	v, _ := ruleValue(rule, "--comment")
	return strings.Trim(v, `"`)
}

// ruleJump returns the chain that a rule jumps or goes to, or its target.
func ruleJump(rule string) string {
	if v, jumps := ruleValue(rule, "-j"); jumps {
		return v
	}
	v, _ := ruleValue(rule, "-g")
	return v
}

// ruleValue returns the word after option. Our comments hold no spaces.
func ruleValue(rule, option string) (string, bool) {
	_, rest, ok := strings.Cut(" "+rule, " "+option+" ")
	if !ok {
		return "", false
	}
	v, _, _ := strings.Cut(rest, " ")
	return v, true
}
