// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"egress-gateway.io/test/lab/namespace"
)

// Pod is a pod of the lab: a Pod object in the API and an address on a node.
type Pod struct {
	Namespace string
	Name      string
	Node      string
	Address   netip.Addr
	Address6  netip.Addr // not valid without Options.DualStack
	Part      Part       // where its sockets are

	lab *Lab
}

// PodOption changes how AddPod makes a pod.
type PodOption func(*podSettings)

type podSettings struct {
	shared bool
	name   string
}

// SharedNetwork puts the pod's address into one network namespace per node,
// for tests with hundreds of pods. Such pods share ports and routes, no more:
// each still speaks with its own address only.
func SharedNetwork() PodOption { return func(s *podSettings) { s.shared = true } }

// PodName sets the name of the Pod object; default is NODE-NUMBER, counted in
// each namespace.
func PodName(name string) PodOption { return func(s *podSettings) { s.name = name } }

// AddNamespace makes a namespace in the API. One that exists is left as it is.
func (l *Lab) AddNamespace(ctx context.Context, name string) error {
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err := l.kube.CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make namespace %s: %w", name, err)
	}
	return nil
}

// Populate makes namespaces, and pods of each on every node.
func (l *Lab) Populate(ctx context.Context, namespaces []string, podsPerNode int) ([]*Pod, error) {
	var pods []*Pod
	for _, ns := range namespaces {
		if err := l.AddNamespace(ctx, ns); err != nil {
			return nil, err
		}
		for _, node := range l.Nodes() {
			for range podsPerNode {
				p, err := l.AddPod(ctx, node, ns)
				if err != nil {
					return nil, err
				}
				pods = append(pods, p)
			}
		}
	}
	return pods, nil
}

// AddPod makes a pod on a node, first on the network and then in the API, as a
// kubelet would. The namespace must exist.
func (l *Lab) AddPod(ctx context.Context, node, ns string, options ...PodOption) (*Pod, error) {
	var settings podSettings
	for _, o := range options {
		o(&settings)
	}
	p, plan, err := l.reservePod(node, ns, settings)
	if err != nil {
		return nil, err
	}
	if err := l.makePod(p, plan); err != nil {
		return nil, fmt.Errorf("add pod %s/%s: %w", ns, p.Name, err)
	}
	if err := l.registerPod(ctx, p); err != nil {
		return nil, fmt.Errorf("add pod %s/%s: %w", ns, p.Name, err)
	}
	return p, nil
}

// podPlan says what the network needs for a pod.
type podPlan struct {
	node   Node
	port   string // name of the port on the node's bridge
	create bool   // the pod's namespace is to be made
	ready  chan struct{}
}

func (l *Lab) reservePod(node, ns string, settings podSettings) (*Pod, podPlan, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[node]
	if n == nil {
		return nil, podPlan{}, fmt.Errorf("add pod to %s: there is no such node", node)
	}
	if !n.Subnet.Contains(n.nextPod.Next()) {
		return nil, podPlan{}, fmt.Errorf("add pod to %s: its subnet %s is full", node, n.Subnet)
	}
	n.pods++
	p := &Pod{Namespace: ns, Name: settings.name, Node: node, Address: n.nextPod, lab: l}
	if p.Name == "" {
		n.podsOf[ns]++
		p.Name = fmt.Sprintf("%s-%d", node, n.podsOf[ns])
	}
	n.nextPod = n.nextPod.Next()
	if l.opts.DualStack {
		p.Address6, n.nextPod6 = n.nextPod6, n.nextPod6.Next()
	}
	plan := podPlan{port: fmt.Sprintf("p%d", n.pods), create: true}
	p.Part = Part("pod-" + ns + "-" + p.Name)
	if settings.shared {
		p.Part = Part(node + "-pods")
		plan.create = n.sharedReady == nil
		if plan.create {
			n.sharedReady = make(chan struct{})
		}
		plan.ready = n.sharedReady
	}
	if plan.create {
		n.podParts = append(n.podParts, p.Part)
	}
	plan.node = *n
	return p, plan, nil
}

func (l *Lab) makePod(p *Pod, plan podPlan) error {
	addrs := p.addrs(plan.node)
	if !plan.create {
		<-plan.ready
		h, err := l.netlink(p.Part)
		if err != nil {
			return err
		}
		return configure(h, nodeNIC, addrs...)
	}
	if plan.ready != nil {
		defer close(plan.ready)
	}
	if err := l.makePart(p.Part); err != nil {
		return err
	}
	// Else RemovePod of the first pod in a shared namespace removes them all.
	settings := slices.Concat(noWait, [][2]string{{"ipv4/conf/all/promote_secondaries", "1"}})
	if err := namespace.Sysctl(l.Namespace(p.Part), settings...); err != nil {
		return err
	}
	err := l.plug(cable{part: p.Part, nic: nodeNIC, addrs: addrs, switchPart: Part(p.Node), bridge: podsBr, port: plan.port})
	if err != nil {
		return err
	}
	if l.opts.DualStack {
		if err := l.addRoute(p.Part, "::/0", podRouter(plan.node.Subnet6).String(), nodeNIC); err != nil {
			return err
		}
	}
	return l.addRoute(p.Part, "default", podRouter(plan.node.Subnet).String(), nodeNIC)
}

// addrs are the pod's addresses on its link.
func (p *Pod) addrs(n Node) []string {
	addrs := []string{cidr(p.Address.String(), n.Subnet.Bits())}
	if p.Address6.IsValid() {
		addrs = append(addrs, cidr(p.Address6.String(), n.Subnet6.Bits()))
	}
	return addrs
}

// registerPod writes the Pod object: scheduled at once, then running with its
// address. That order is the one in which OVN-Kubernetes sees a real pod.
func (l *Lab) registerPod(ctx context.Context, p *Pod) error {
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: map[string]string{"app": "lab"}},
		Spec:       corev1.PodSpec{NodeName: p.Node, Containers: []corev1.Container{{Name: "app", Image: "lab.invalid/app"}}},
	}
	pods := l.kube.CoreV1().Pods(p.Namespace)
	if _, err := pods.Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return err
	}
	ips := []map[string]string{{"ip": p.Address.String()}}
	if p.Address6.IsValid() {
		ips = append(ips, map[string]string{"ip": p.Address6.String()})
	}
	status := text(map[string]any{"status": map[string]any{"phase": "Running", "podIP": p.Address.String(), "podIPs": ips}})
	_, err := pods.Patch(ctx, p.Name, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status")
	return err
}

// RemovePod takes a pod out of the API and off the network. The namespace of
// pods with SharedNetwork stays for the others.
func (l *Lab) RemovePod(ctx context.Context, p *Pod) error {
	now := int64(0)
	err := l.kube.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	h, err := l.netlink(p.Part)
	if err != nil {
		return err
	}
	n, ok := l.Node(p.Node)
	if !ok {
		return fmt.Errorf("remove pod %s/%s: its node %s is gone", p.Namespace, p.Name, p.Node)
	}
	if p.Part == Part(p.Node+"-pods") {
		for _, addr := range p.addrs(n) {
			if err := dropAddress(h, nodeNIC, addr); err != nil {
				return err
			}
		}
		return nil
	}
	link, err := h.LinkByName(nodeNIC)
	if err != nil {
		return fmt.Errorf("remove pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	if err := h.LinkDel(link); err != nil {
		return fmt.Errorf("remove pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return l.dropPart(p.Part)
}
