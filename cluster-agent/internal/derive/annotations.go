// SPDX-License-Identifier: Apache-2.0

package derive

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/shared/tenant"
)

// maxRequested limits how many addresses one annotation may ask for.
const maxRequested = 32

// parseRequested reads the annotation egress-gateway.io/egress-ips: addresses
// separated by commas. It returns them sorted IPv4 first, otherwise in their
// order; nil for an empty text.
func parseRequested(text string) ([]netip.Addr, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > maxRequested {
		return nil, fmt.Errorf("%d addresses; at most %d are allowed", len(parts), maxRequested)
	}
	var list []netip.Addr
	for _, part := range parts {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%q is no IP address; write addresses separated by commas", strings.TrimSpace(part))
		}
		if err := tenant.ValidateAddr(a); err != nil {
			return nil, err
		}
		if slices.Contains(list, a) {
			return nil, fmt.Errorf("%s stands twice", a)
		}
		list = append(list, a)
	}
	return append(tenant.IPv4.Addrs(list), tenant.IPv6.Addrs(list)...), nil
}

// parseNode makes the record of a node. The error is errNotReady as long as
// something is missing that a node is going to tell.
func parseNode(cluster string, n Node, ovn bool) (tenant.Node, error) {
	rec := tenant.Node{Schema: tenant.Schema, Cluster: cluster, Name: n.Name}
	var err error
	switch text, ok := n.Annotations[annotationSubnets]; {
	case ok:
		rec.Subnets, err = parseSubnets(text)
	case ovn:
		err = errNotReady
	default:
		rec.Subnets, err = parsePrefixes(n.PodCIDRs)
	}
	if err != nil {
		return tenant.Node{}, err
	}
	if rec.Addresses, err = parseAddresses(n); err != nil {
		return tenant.Node{}, err
	}
	if len(rec.Subnets) == 0 || len(rec.Addresses) == 0 {
		return tenant.Node{}, errNotReady
	}
	if err := rec.Validate(); err != nil {
		return tenant.Node{}, err
	}
	return rec, nil
}

// parseAddresses chooses one address for each family: from the gateway
// configuration, else the primary address, else the InternalIP.
func parseAddresses(n Node) ([]netip.Addr, error) {
	gw, err := parseGatewayConfig(n.Annotations[annotationGateway])
	if err != nil {
		return nil, err
	}
	primary, err := parsePrimary(n.Annotations[annotationPrimary])
	if err != nil {
		return nil, err
	}
	internal, err := parseInternal(n.InternalIPs)
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, f := range tenant.Families() {
		for _, source := range [][]netip.Addr{gw, primary, internal} {
			if a, ok := f.First(source); ok {
				out = append(out, a)
				break
			}
		}
	}
	return out, nil
}

// parseSubnets reads k8s.ovn.org/node-subnets: an object whose key "default" is
// a subnet or a list of subnets.
func parseSubnets(text string) ([]netip.Prefix, error) {
	var networks map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &networks); err != nil {
		return nil, fmt.Errorf("annotation %s: no JSON object: %w", annotationSubnets, err)
	}
	raw, ok := networks[defaultNetworkName]
	if !ok {
		return nil, errNotReady
	}
	texts, err := stringOrList(raw)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: key %q: %w", annotationSubnets, defaultNetworkName, err)
	}
	list, err := parsePrefixes(texts)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationSubnets, err)
	}
	return list, nil
}

// gatewayConfig is what matters of one network in k8s.ovn.org/l3-gateway-config.
type gatewayConfig struct {
	IPs       json.RawMessage `json:"ip-addresses"`
	IP        json.RawMessage `json:"ip-address"`
	ExtraIPs  json.RawMessage `json:"exgw-ip-addresses"`
	ExtraIP   json.RawMessage `json:"exgw-ip-address"`
	ExtraLink string          `json:"exgw-interface-id"`
}

// parseGatewayConfig reads k8s.ovn.org/l3-gateway-config: the addresses of the
// bridge that external traffic leaves by, which is the second one if there is
// one. An absent annotation or network gives none.
func parseGatewayConfig(text string) ([]netip.Addr, error) {
	if text == "" {
		return nil, nil
	}
	fail := func(err error) ([]netip.Addr, error) {
		return nil, fmt.Errorf("annotation %s: %w", annotationGateway, err)
	}
	var networks map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &networks); err != nil {
		return fail(fmt.Errorf("no JSON object: %w", err))
	}
	raw, ok := networks[defaultNetworkName]
	if !ok {
		return nil, nil
	}
	var c gatewayConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return fail(err)
	}
	for _, field := range []json.RawMessage{c.ExtraIPs, c.ExtraIP, c.IPs, c.IP} {
		texts, err := stringOrList(field)
		if err != nil {
			return fail(err)
		}
		if len(texts) == 0 {
			continue
		}
		list, err := parseHosts(texts)
		if err != nil {
			return fail(err)
		}
		return list, nil
	}
	return nil, nil
}

// parsePrimary reads k8s.ovn.org/node-primary-ifaddr.
func parsePrimary(text string) ([]netip.Addr, error) {
	if text == "" {
		return nil, nil
	}
	var v struct {
		IPv4 string `json:"ipv4"`
		IPv6 string `json:"ipv6"`
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationPrimary, err)
	}
	texts := slices.DeleteFunc([]string{v.IPv4, v.IPv6}, func(s string) bool { return s == "" })
	list, err := parseHosts(texts)
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", annotationPrimary, err)
	}
	return list, nil
}

func parseInternal(texts []string) ([]netip.Addr, error) {
	list, err := parseHosts(texts)
	if err != nil {
		return nil, fmt.Errorf("status.addresses: InternalIP: %w", err)
	}
	return list, nil
}

// stringOrList decodes a JSON string, or a list of strings; null and absent
// are an empty list.
func stringOrList(raw json.RawMessage) ([]string, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var list []string
	if json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	var one string
	if err := json.Unmarshal(raw, &one); err != nil {
		return nil, errors.New("neither a string nor a list of strings")
	}
	if one == "" {
		return nil, nil
	}
	return []string{one}, nil
}

// parsePrefixes parses subnets; IPv4 first.
func parsePrefixes(texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return append(tenant.IPv4.Prefixes(list), tenant.IPv6.Prefixes(list)...), nil
}

// parseHosts parses addresses with or without a prefix length.
func parseHosts(texts []string) ([]netip.Addr, error) {
	var list []netip.Addr
	for _, text := range texts {
		host, _, _ := strings.Cut(text, "/")
		a, err := netip.ParseAddr(host)
		if err != nil {
			return nil, err
		}
		if p, err := netip.ParsePrefix(text); err == nil {
			a = p.Addr()
		} else if host != text {
			return nil, err
		}
		if a.IsLinkLocalUnicast() {
			continue // true of a node, but no next hop
		}
		if err := tenant.ValidateAddr(a); err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}
