// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Tenant is an EgressTenant as its owner reads it.
type Tenant struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Pool       string   `json:"pool"`
		Namespaces []string `json:"namespaces"`
		GatewayIPs []string `json:"gatewayIPs"`
		EgressIPs  []string `json:"egressIPs"`
	} `json:"spec"`
	Status struct {
		Gateway    string             `json:"gateway"`
		Conditions []metav1.Condition `json:"conditions"`
	} `json:"status"`
}

// EgressIP returns the tenant's first IPv4 egress IP; it is invalid if there is
// none.
func (t Tenant) EgressIP() netip.Addr { return first(t.Spec.EgressIPs, netip.Addr.Is4) }

// GatewayIP returns the tenant's first IPv4 gateway IP.
func (t Tenant) GatewayIP() netip.Addr { return first(t.Spec.GatewayIPs, netip.Addr.Is4) }

// EgressIP6 and GatewayIP6 are the same for IPv6.
func (t Tenant) EgressIP6() netip.Addr { return first(t.Spec.EgressIPs, netip.Addr.Is6) }

// GatewayIP6 see EgressIP6.
func (t Tenant) GatewayIP6() netip.Addr { return first(t.Spec.GatewayIPs, netip.Addr.Is6) }

// Addresses returns all egress IPs of the tenant.
func (t Tenant) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, s := range t.Spec.EgressIPs {
		if a, err := netip.ParseAddr(s); err == nil {
			all = append(all, a)
		}
	}
	return all
}

// Condition returns the condition of this type, with an empty Status if there
// is none.
func (t Tenant) Condition(kind string) metav1.Condition {
	for _, c := range t.Status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	return metav1.Condition{Type: kind}
}

// Ready tells whether the tenant is Ready in its present generation.
func (t Tenant) Ready() bool {
	c := t.Condition("Ready")
	return c.Status == metav1.ConditionTrue && c.ObservedGeneration == t.Metadata.Generation
}

// Why is one line on the tenant's state, for messages.
func (t Tenant) Why() string {
	s := fmt.Sprintf("tenant %s egress %v gateway %v", t.Metadata.Name, t.Spec.EgressIPs, t.Spec.GatewayIPs)
	for _, c := range t.Status.Conditions {
		s += fmt.Sprintf("; %s=%s %s %q", c.Type, c.Status, c.Reason, c.Message)
	}
	return s
}

// Tenant returns an EgressTenant; found is false if there is none.
func (c *Cluster) Tenant(ctx context.Context, name string) (t Tenant, found bool, err error) {
	u, err := c.Dynamic.Resource(Tenants).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Tenant{}, false, nil
	}
	if err != nil {
		return Tenant{}, false, fmt.Errorf("get tenant %s: %w", name, err)
	}
	t, err = FromObject(u)
	return t, err == nil, err
}

// ListTenants returns all EgressTenants by name.
func (c *Cluster) ListTenants(ctx context.Context) (map[string]Tenant, error) {
	l, err := c.Dynamic.Resource(Tenants).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	out := make(map[string]Tenant, len(l.Items))
	for i := range l.Items {
		t, err := FromObject(&l.Items[i])
		if err != nil {
			return nil, err
		}
		out[t.Metadata.Name] = t
	}
	return out, nil
}

// WaitTenant waits until the tenant is as wanted, at most for limit.
func (c *Cluster) WaitTenant(ctx context.Context, name string, limit time.Duration, what string, want func(Tenant) bool) (Tenant, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last Tenant
	err := Until(ctx, fmt.Sprintf("tenant %s %s", name, what), func(ctx context.Context) (bool, error) {
		t, found, err := c.Tenant(ctx, name)
		if found {
			last = t
		}
		return found && want(t), err
	})
	if err != nil {
		return last, fmt.Errorf("%w; last seen: %s", err, last.Why())
	}
	return last, nil
}

// WaitReady waits until the tenant is Ready.
func (c *Cluster) WaitReady(ctx context.Context, name string, limit time.Duration) (Tenant, error) {
	return c.WaitTenant(ctx, name, limit, "to be Ready", Tenant.Ready)
}

// WaitGone waits until the EgressTenant is gone.
func (c *Cluster) WaitGone(ctx context.Context, name string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return Until(ctx, "tenant "+name+" to be gone", func(ctx context.Context) (bool, error) {
		_, found, err := c.Tenant(ctx, name)
		return !found && err == nil, err
	})
}

// FromObject reads an EgressTenant.
func FromObject(u *unstructured.Unstructured) (Tenant, error) {
	var t Tenant
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &t); err != nil {
		return Tenant{}, fmt.Errorf("read tenant %s: %w", u.GetName(), err)
	}
	return t, nil
}

func first(list []string, family func(netip.Addr) bool) netip.Addr {
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil && family(a) {
			return a
		}
	}
	return netip.Addr{}
}
