// SPDX-License-Identifier: Apache-2.0

package tenant

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	maxLabel = 63  // RFC 1123 label
	maxName  = 253 // RFC 1123 subdomain, as Kubernetes limits object names
	maxList  = 256 // addresses or subnets of one record; far above any real one
)

// ValidateLabel checks s against the RFC 1123 label form: names of clusters,
// gateways and groups.
func ValidateLabel(s string) error {
	if s == "" {
		return errors.New("empty name")
	}
	if len(s) > maxLabel {
		return fmt.Errorf("name of %d characters; at most %d are allowed", len(s), maxLabel)
	}
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alnum && (c != '-' || i == 0 || i == len(s)-1) {
			return fmt.Errorf("name %q: want lower-case letters, digits and inner dashes", s)
		}
	}
	return nil
}

// ValidateName checks s against the RFC 1123 subdomain form: labels joined by
// dots, as Kubernetes names nodes and tenants.
func ValidateName(s string) error {
	if len(s) > maxName {
		return fmt.Errorf("name of %d characters; at most %d are allowed", len(s), maxName)
	}
	for label := range strings.SplitSeq(s, ".") {
		if err := ValidateLabel(label); err != nil {
			return fmt.Errorf("name %q: %w", s, err)
		}
	}
	return nil
}

// Validate says what is wrong with a record, or nil. All errors found are
// joined.
func (t Tenant) Validate() error {
	errs := []error{schemaError(t.Schema), identity(t.Cluster, t.Name)}
	if t.UID == "" {
		errs = append(errs, errors.New("no uid"))
	}
	if t.Released {
		return errors.Join(errs...)
	}
	if err := ValidateLabel(t.Group); err != nil {
		errs = append(errs, fmt.Errorf("group: %w", err))
	}
	if len(t.GatewayIPs) == 0 {
		errs = append(errs, errors.New("no gateway IP"))
	}
	errs = append(errs, addresses("gatewayIPs", t.GatewayIPs, 1), addresses("egressIPs", t.EgressIPs, maxList))
	for _, a := range t.EgressIPs {
		if slices.Contains(t.GatewayIPs, a) {
			errs = append(errs, fmt.Errorf("%s is both a gateway IP and an egress IP", a))
		}
	}
	for _, f := range []Family{IPv4, IPv6} {
		g, e := len(f.Addrs(t.GatewayIPs)), len(f.Addrs(t.EgressIPs))
		if (g == 0) != (e == 0) {
			errs = append(errs, fmt.Errorf("%s: %d gateway IPs with %d egress IPs; a family needs both or neither", f, g, e))
		}
	}
	return errors.Join(errs...)
}

// Validate says what is wrong with a record, or nil.
func (n Node) Validate() error {
	errs := []error{schemaError(n.Schema), identity(n.Cluster, n.Name), addresses("addresses", n.Addresses, 1)}
	if err := prefixes("subnets", n.Subnets); err != nil {
		errs = append(errs, err)
	}
	for _, p := range n.Subnets {
		for _, a := range n.Addresses {
			if p.Contains(a) {
				// The route would take the network that the next hop is on.
				errs = append(errs, fmt.Errorf("subnets: %s holds the node's own address %s", p, a))
			}
		}
	}
	return errors.Join(errs...)
}

// Validate says what is wrong with a record, or nil.
func (n Network) Validate() error {
	errs := []error{schemaError(n.Schema)}
	if err := ValidateLabel(n.Cluster); err != nil {
		errs = append(errs, fmt.Errorf("cluster: %w", err))
	}
	return errors.Join(append(errs, prefixes("podNetworks", n.PodNetworks))...)
}

func schemaError(v int) error {
	if v != Schema {
		return fmt.Errorf("schema version %d; this program speaks %d (upgrade the older of the two agents)", v, Schema)
	}
	return nil
}

func identity(cluster, name string) error {
	if err := ValidateLabel(cluster); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return ValidateName(name)
}

// addresses checks that each address is a plain unicast one, that none stands
// twice, and that no family has more than perFamily.
func addresses(field string, list []netip.Addr, perFamily int) error {
	seen := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if err := ValidateAddr(a); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		if seen[a] {
			return fmt.Errorf("%s: %s stands twice", field, a)
		}
		seen[a] = true
	}
	for _, f := range []Family{IPv4, IPv6} {
		if n := len(f.Addrs(list)); n > perFamily {
			return fmt.Errorf("%s: %d %s addresses; at most %d are allowed", field, n, f, perFamily)
		}
	}
	return nil
}

// ValidateAddr says why a can not be a node's, a gateway's or an egress
// address: it must be a unicast address of global or private scope, without a
// zone, and IPv4 in its own form (RFC 4291 section 2.5.5 forms are refused).
func ValidateAddr(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("no address")
	case a.Zone() != "":
		return fmt.Errorf("address %s has a zone", a)
	case a.Is4In6():
		return fmt.Errorf("address %s is an IPv4 address in IPv6 form", a)
	case a.IsLinkLocalUnicast():
		return fmt.Errorf("address %s is link-local: it means nothing beyond its link, so no node can use it as a next hop and no packet can leave with it", a)
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("address %s is not a global or private unicast address", a)
	}
	return nil
}

func prefixes(field string, list []netip.Prefix) error {
	if len(list) > maxList {
		return fmt.Errorf("%s: %d entries; at most %d are allowed", field, len(list), maxList)
	}
	for i, p := range list {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%s: %s is no subnet in its canonical form", field, p)
		}
		if p.Bits() == 0 {
			return fmt.Errorf("%s: %s would take all traffic", field, p)
		}
		for _, q := range list[:i] {
			if p.Overlaps(q) {
				return fmt.Errorf("%s: %s and %s overlap", field, q, p)
			}
		}
	}
	return nil
}
