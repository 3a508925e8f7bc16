// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"egress-gateway.io/test/lab/namespace"
)

const (
	nodeNIC = "eth0"
	podsBr  = "pods" // the bridge on a node that its pods hang on

	subnetsAnnotation = "k8s.ovn.org/node-subnets"
	gatewayAnnotation = "k8s.ovn.org/l3-gateway-config"
	primaryAnnotation = "k8s.ovn.org/node-primary-ifaddr"
)

// NodeSpec describes a node to add; what is zero is chosen by the lab: the
// first node gets 192.168.99.21 and 10.128.0.0/23, and so on, the lowest free.
type NodeSpec struct {
	Name    string
	Address netip.Addr   // inside InternalNetwork
	Subnet  netip.Prefix // inside PodNetworks

	// The same for the IPv6 plane.
	Address6 netip.Addr
	Subnet6  netip.Prefix
}

// Node is a node of the lab: a namespace and a Node object with the
// annotations of OVN-Kubernetes.
type Node struct {
	Name    string
	Address netip.Addr
	Subnet  netip.Prefix

	// Not valid without Options.DualStack.
	Address6 netip.Addr
	Subnet6  netip.Prefix

	nextPod     netip.Addr
	nextPod6    netip.Addr
	pods        int            // pods made so far, for their ports' names
	podsOf      map[string]int // the same by namespace, for their own names
	sharedReady chan struct{}  // closed once the namespace of SharedNetwork pods is made; nil before
	podParts    []Part
}

// Node returns a copy of what the lab knows of a node.
func (l *Lab) Node(name string) (Node, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[name]
	if n == nil {
		return Node{}, false
	}
	return *n, true
}

// Nodes returns the names of the nodes, sorted.
func (l *Lab) Nodes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name := range l.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// AddNode adds a node to the network and to the API.
func (l *Lab) AddNode(ctx context.Context, spec NodeSpec) (*Node, error) {
	n, err := l.reserveNode(spec)
	if err != nil {
		return nil, err
	}
	if err := l.makeNode(n); err != nil {
		return nil, fmt.Errorf("add node %s: %w", n.Name, err)
	}
	if err := l.routeBetweenNodes(); err != nil {
		return nil, fmt.Errorf("add node %s: %w", n.Name, err)
	}
	return n, l.registerNode(ctx, n)
}

// reserveNode fills in what the spec leaves open.
func (l *Lab) reserveNode(spec NodeSpec) (*Node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes[spec.Name] != nil {
		return nil, fmt.Errorf("add node %s: it exists", spec.Name)
	}
	index := 0
	for ; index < maxNodes; index++ {
		taken := false
		for _, n := range l.nodes {
			taken = taken || n.Address == nodeAddress(index) || n.Subnet.Overlaps(nodeSubnet(index))
		}
		if !taken {
			break
		}
	}
	if index == maxNodes && !(spec.Address.IsValid() && spec.Subnet.IsValid()) {
		return nil, fmt.Errorf("add node %s: no address is left", spec.Name)
	}
	n := &Node{Name: spec.Name, Address: spec.Address, Subnet: spec.Subnet, podsOf: map[string]int{}}
	if !n.Address.IsValid() {
		n.Address = nodeAddress(index)
	}
	if !n.Subnet.IsValid() {
		n.Subnet = nodeSubnet(index)
	}
	n.nextPod = firstPod(n.Subnet)
	if l.opts.DualStack {
		n.Address6, n.Subnet6 = spec.Address6, spec.Subnet6
		if !n.Address6.IsValid() {
			n.Address6 = nodeAddress6(index)
		}
		if !n.Subnet6.IsValid() {
			n.Subnet6 = nodeSubnet6(index)
		}
		n.nextPod6 = firstPod(n.Subnet6)
	}
	l.nodes[n.Name] = n
	return n, nil
}

func (l *Lab) makeNode(n *Node) error {
	part := Part(n.Name)
	if err := l.makePart(part); err != nil {
		return err
	}
	settings := append(slices.Clone(noWait), [][2]string{
		{"ipv4/ip_forward", "1"},
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/conf/all/send_redirects", "0"},
		{"ipv4/conf/default/send_redirects", "0"},
		// Else SetNodeAddress would take the new address away with the old one.
		{"ipv4/conf/all/promote_secondaries", "1"},
		// OVN does not follow redirects either; a gateway must not rely on it.
		{"ipv4/conf/all/accept_redirects", "0"},
		{"ipv4/conf/default/accept_redirects", "0"},
	}...)
	if err := namespace.Sysctl(l.Namespace(part), settings...); err != nil {
		return err
	}
	err := l.plug(cable{part: part, nic: nodeNIC, addrs: []string{cidr(n.Address.String(), internalBits)},
		switchPart: PartInternal, bridge: bridge, port: nodePort(n.Name)})
	if err != nil {
		return err
	}
	if err := l.awaitPort(PartInternal, nodePort(n.Name)); err != nil {
		return err
	}
	if err := l.announce(part, nodeNIC, n.Address); err != nil {
		return err
	}
	if err := l.makeBridge(part, podsBr, cidr(podRouter(n.Subnet).String(), n.Subnet.Bits())); err != nil {
		return err
	}
	if l.opts.DualStack {
		if err := l.addNode6(n); err != nil {
			return err
		}
	}
	if l.opts.NodeDefaultViaGateway {
		return l.addRoute(part, "default", GatewayInternal, nodeNIC)
	}
	return l.addRoute(part, "default", "", "")
}

// nodePort is the name of a node's port on the internal switch. A kernel name
// has 15 characters at most.
func nodePort(node string) string { return "n-" + node[:min(len(node), 13)] }

// routeBetweenNodes gives each node a route to each other's pods, as OVN's
// overlay would.
func (l *Lab) routeBetweenNodes() error {
	l.mu.Lock()
	var nodes []Node
	for _, n := range l.nodes {
		nodes = append(nodes, *n)
	}
	l.mu.Unlock()
	for _, from := range nodes {
		for _, to := range nodes {
			if from.Name == to.Name {
				continue
			}
			if err := l.addRoute(Part(from.Name), to.Subnet.String(), to.Address.String(), nodeNIC); err != nil {
				return err
			}
			if !l.opts.DualStack {
				continue
			}
			if err := l.addRoute(Part(from.Name), to.Subnet6.String(), to.Address6.String(), nodeNIC); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveNode takes a node out of the API with its pods, and off the network.
func (l *Lab) RemoveNode(ctx context.Context, name string) error {
	l.mu.Lock()
	n := l.nodes[name]
	delete(l.nodes, name)
	l.mu.Unlock()
	if n == nil {
		return fmt.Errorf("remove node %s: there is none", name)
	}
	now := int64(0)
	pods, err := l.kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name})
	if err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	for _, p := range pods.Items {
		err := l.kube.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove node %s: %w", name, err)
		}
	}
	if err := l.kube.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	errs := []error{l.unplug(PartInternal, nodePort(name))}
	for _, part := range append(n.podParts, Part(name)) {
		errs = append(errs, l.dropPart(part))
	}
	for _, other := range l.Nodes() {
		errs = append(errs, l.dropRoute(Part(other), n.Subnet))
		if l.opts.DualStack {
			errs = append(errs, l.dropRoute(Part(other), n.Subnet6))
		}
	}
	return errors.Join(errs...)
}

// SetNodeSubnet gives a node another pod subnet of the given one's family, on
// the network and then in the API. Pods that it has keep their old addresses, and are cut off.
func (l *Lab) SetNodeSubnet(ctx context.Context, name string, subnet netip.Prefix) error {
	return l.changeNode(ctx, name, func(n *Node) error {
		old := n.Subnet
		if subnet.Addr().Is6() {
			old = n.Subnet6
			n.Subnet6, n.nextPod6 = subnet.Masked(), firstPod(subnet)
		} else {
			n.Subnet, n.nextPod = subnet.Masked(), firstPod(subnet)
		}
		for _, other := range l.Nodes() {
			if other != name {
				if err := l.dropRoute(Part(other), old); err != nil {
					return err
				}
			}
		}
		return l.readdress(Part(name), podsBr, cidr(podRouter(old).String(), old.Bits()), cidr(podRouter(subnet).String(), subnet.Bits()))
	})
}

// SetNodeAddress gives a node another address of the given one's family, on the
// network and then in the API.
func (l *Lab) SetNodeAddress(ctx context.Context, name string, addr netip.Addr) error {
	return l.changeNode(ctx, name, func(n *Node) error {
		if addr.Is6() {
			old := n.Address6
			n.Address6 = addr
			return l.readdress(Part(name), nodeNIC, cidr(old.String(), bits6), cidr(addr.String(), bits6))
		}
		old := n.Address
		n.Address = addr
		if err := l.readdress(Part(name), nodeNIC, cidr(old.String(), internalBits), cidr(addr.String(), internalBits)); err != nil {
			return err
		}
		return l.announce(Part(name), nodeNIC, addr)
	})
}

func (l *Lab) changeNode(ctx context.Context, name string, change func(n *Node) error) error {
	l.mu.Lock()
	n := l.nodes[name]
	if n == nil {
		l.mu.Unlock()
		return fmt.Errorf("change node %s: there is none", name)
	}
	changed := *n
	l.mu.Unlock()
	if err := change(&changed); err != nil {
		return fmt.Errorf("change node %s: %w", name, err)
	}
	l.mu.Lock()
	n.Address, n.Subnet, n.nextPod = changed.Address, changed.Subnet, changed.nextPod
	n.Address6, n.Subnet6, n.nextPod6 = changed.Address6, changed.Subnet6, changed.nextPod6
	l.mu.Unlock()
	if err := l.routeBetweenNodes(); err != nil {
		return fmt.Errorf("change node %s: %w", name, err)
	}
	return l.registerNode(ctx, &changed)
}

// registerNode writes the Node object as kubelet and OVN-Kubernetes would.
func (l *Lab) registerNode(ctx context.Context, n *Node) error {
	addresses := []map[string]string{{"type": "InternalIP", "address": n.Address.String()}}
	subnets, own, hops := []string{n.Subnet.String()}, []string{cidr(n.Address.String(), internalBits)}, []string{GatewayInternal}
	primary := map[string]string{"ipv4": own[0]}
	if l.opts.DualStack {
		addresses = append(addresses, map[string]string{"type": "InternalIP", "address": n.Address6.String()})
		subnets, own, hops = append(subnets, n.Subnet6.String()), append(own, cidr(n.Address6.String(), bits6)), append(hops, GatewayInternal6)
		primary["ipv6"] = own[1]
	}
	gateway := map[string]any{"mode": "shared", "bridge-id": "br-ex", "interface-id": "br-ex_" + n.Name,
		"ip-addresses": own, "next-hops": hops, "node-port-enable": "true", "vlan-id": "0"}
	if len(own) == 1 {
		gateway["ip-address"], gateway["next-hop"] = own[0], hops[0]
	}
	object := map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{
		"name": n.Name, "labels": map[string]string{"kubernetes.io/hostname": n.Name},
		"annotations": map[string]string{
			subnetsAnnotation: text(map[string]any{"default": subnets}),
			gatewayAnnotation: text(map[string]any{"default": gateway}),
			primaryAnnotation: text(primary),
		}}}
	force := true
	_, err := l.kube.CoreV1().Nodes().Patch(ctx, n.Name, types.ApplyPatchType, []byte(text(object)), metav1.PatchOptions{FieldManager: "lab", Force: &force})
	if err != nil {
		return fmt.Errorf("write node %s: %w", n.Name, err)
	}
	// Not applied but merged: the schema takes the type of an address for its
	// key, and does not apply two of one type.
	status := map[string]any{"status": map[string]any{
		"addresses":  append(addresses, map[string]string{"type": "Hostname", "address": n.Name}),
		"conditions": []map[string]string{{"type": "Ready", "status": "True", "reason": "Lab", "message": "a node of the lab"}},
	}}
	_, err = l.kube.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(text(status)), metav1.PatchOptions{FieldManager: "lab"}, "status")
	if err != nil {
		return fmt.Errorf("write status of node %s: %w", n.Name, err)
	}
	return nil
}

// text is v as JSON; v is made of maps, lists and strings only.
func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // no such value fails
	}
	return string(b)
}
