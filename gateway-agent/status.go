// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"egress-gateway.io/gateway-agent/internal/flows"
	"egress-gateway.io/gateway-agent/internal/kernel"
	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/gateway-agent/internal/reconcile"
	"egress-gateway.io/shared/daemon"
	"egress-gateway.io/shared/tenant"
)

// report is what `status` shows; its JSON form is for programs.
type report struct {
	Gateway  string        `json:"gateway"`
	Group    string        `json:"group"`
	Version  string        `json:"version"`
	Running  bool          `json:"running"` // the daemon
	Healthy  bool          `json:"healthy"`
	Internal string        `json:"internalInterface"`
	External string        `json:"externalInterface"`
	IPTables string        `json:"iptables"` // version and backend: "1.8.9 (nf_tables)"
	Clusters []clusterLine `json:"clusters"`
	Tenants  []tenantLine  `json:"tenants"`
	Routes   []routeLine   `json:"routes"`
	Guards   []guardLine   `json:"guards"`
	Strays   []strayLine   `json:"strays"`
	Problems []string      `json:"problems,omitempty"`
	Pending  []string      `json:"pending,omitempty"` // what the kernel lacks, as commands
}

type clusterLine struct {
	Name       string `json:"name"`
	Generation int64  `json:"generation"`
	Tenants    int    `json:"tenants"`
	Nodes      int    `json:"nodes"`
}

type tenantLine struct {
	Cluster    string       `json:"cluster"`
	Name       string       `json:"name"`
	Namespaces []string     `json:"namespaces,omitempty"`
	Link       string       `json:"link"`
	State      string       `json:"state"` // of the link: UP, DOWN or missing
	MAC        string       `json:"mac,omitempty"`
	Mark       string       `json:"mark"`
	GatewayIPs []netip.Addr `json:"gatewayIPs"`
	EgressIPs  []netip.Addr `json:"egressIPs"`
	Packets    uint64       `json:"packets"` // from the pods, since the link was made
	Bytes      uint64       `json:"bytes"`
	// Connections are those of all families. PortsUsed of the Ports that an
	// egress IP has are in use towards BusiestDestination.
	Connections        int    `json:"connections"`
	PortsUsed          int    `json:"portsUsed"`
	Ports              int    `json:"ports"`
	BusiestDestination string `json:"busiestDestination,omitempty"`
	// NodeIPSources are connections of the tenant that came with a node's
	// address; they were translated as all others.
	NodeIPSources uint64 `json:"nodeIPSources"`
	// Refused are the packets that were refused, by reason.
	Refused    map[string]uint64 `json:"refused,omitempty"`
	Held       bool              `json:"held,omitempty"`
	Generation int64             `json:"generation"`
}

type routeLine struct {
	Subnet netip.Prefix `json:"subnet"`
	Via    netip.Addr   `json:"via"`
	Dev    string       `json:"dev"`
	Node   string       `json:"node,omitempty"`
}

// strayLine is a node that sends past the link of a tenant.
type strayLine struct {
	Node    string `json:"node"`
	Tenant  string `json:"tenant,omitempty"` // empty where it can not be told
	Packets uint64 `json:"packets"`          // since it began
}

type guardLine struct {
	What    string `json:"what"`
	Packets uint64 `json:"packets"`
}

// errUnhealthy makes `status` end with exitError; the report has told why.
var errUnhealthy = errors.New("this gateway is not healthy")

func runStatus(c Config, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("status", flag.ContinueOnError)
	output := f.String("output", "text", "text or json")
	if err := parseFlags(f, args); err != nil {
		return err
	}
	if *output != "text" && *output != "json" {
		return fmt.Errorf("--output %q: want text or json; %w", *output, errUsage)
	}
	r, err := readReport(context.Background(), c)
	if err != nil {
		return err
	}
	if *output == "json" {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(r)
	} else {
		err = r.print(stdout)
	}
	if err == nil && !r.Healthy {
		err = errUnhealthy
	}
	return err
}

// readReport reads the disk copy and the kernel, and nothing else.
func readReport(ctx context.Context, c Config) (report, error) {
	store, err := reconcile.OpenStore(c.StateDir)
	if err != nil {
		return report{}, err
	}
	loaded, err := store.Load()
	if err != nil {
		return report{}, err
	}
	k, err := kernel.New(c.host(), c.kernelOptions(slog.New(slog.DiscardHandler)))
	if err != nil {
		return report{}, err
	}
	defer k.Close()
	seen := sight{Loaded: loaded, iptables: k.Backend(), preflight: k.Preflight(ctx)}
	if seen.running, err = store.Locked(); err != nil {
		return report{}, err
	}
	if seen.host, err = k.Facts(ctx); err != nil {
		return report{}, fmt.Errorf("read the host: %w", err)
	}
	if seen.state, err = k.Observe(ctx); err != nil {
		return report{}, fmt.Errorf("observe the kernel: %w", err)
	}
	if seen.counters, err = k.Counters(ctx); err != nil {
		return report{}, fmt.Errorf("read the counters: %w", err)
	}
	if seen.nats, err = embeddedProblem(c); err != nil {
		return report{}, err
	}
	if err := seen.readFlows(ctx, c.MarkMask); err != nil {
		return report{}, err
	}
	return newReport(c, seen), nil
}

// readFlows counts the connections, and has them tell whose the strays are.
func (s *sight) readFlows(ctx context.Context, mask uint32) error {
	opened, err := flows.Open()
	if err != nil {
		return err
	}
	defer opened.Close()
	if s.usage, err = (portsAdapter{opened}).Usage(ctx, mask, flows.Ports); err != nil {
		return err
	}
	return reconcile.Identify(ctx, s.counters.Strays, flowsAdapter{opened}.numbers(mask))
}

// sight is everything that a report is made from.
type sight struct {
	reconcile.Loaded
	running   bool
	iptables  string // version and backend
	nats      string // what is wrong with the embedded server
	preflight []kernel.Check
	host      plan.Host
	state     plan.State
	counters  kernel.Counters
	usage     reconcile.Usage
}

// newReport compares what is remembered with what is there.
func newReport(c Config, s sight) report {
	r := report{
		Gateway: c.Name, Group: c.Group, Version: daemon.Version(), Running: s.running,
		Internal: c.InternalInterface, External: c.ExternalInterface, IPTables: s.iptables,
	}
	for _, name := range slices.Sorted(maps.Keys(s.Memory.Clusters)) {
		cl := s.Memory.Clusters[name]
		r.Clusters = append(r.Clusters, clusterLine{name, cl.Generation, len(cl.Tenants), len(cl.Nodes)})
	}
	for _, ref := range s.Memory.Refs() {
		r.Tenants = append(r.Tenants, newTenantLine(ref, c.MarkMask, s))
	}
	r.Routes = routeLines(s)
	for _, what := range slices.Sorted(maps.Keys(s.counters.Guards)) {
		r.Guards = append(r.Guards, guardLine{what, s.counters.Guards[what].Packets})
	}
	for _, l := range reconcile.StrayLines(s.Memory, s.counters.Strays) {
		line := strayLine{Node: l.Cluster + "/" + l.Node, Packets: l.Packets}
		if l.Number != 0 {
			line.Tenant = l.Tenant.String()
		}
		r.Strays = append(r.Strays, line)
	}
	r.judge(s)
	return r
}

// judge lists everything that is not as it should be.
func (r *report) judge(s sight) {
	add := func(format string, args ...any) { r.Problems = append(r.Problems, fmt.Sprintf(format, args...)) }
	if !s.running {
		add("the daemon is not running: traffic flows on, but changes do not arrive")
	}
	switch {
	case s.Corrupt != nil:
		add("the disk copy can not be used: %v", s.Corrupt)
	case !s.Found:
		add("there is no disk copy: nothing was received from NATS yet")
	}
	if s.nats != "" && s.running {
		add("%s; what is known is served", s.nats)
	}
	for _, check := range s.preflight {
		add("%s", check)
	}
	for _, p := range s.Problems {
		add("%s", reconcile.ProblemLine(p))
	}
	want, problems := plan.Desired(reconcile.InputOf(s.Memory, s.host))
	for _, p := range problems {
		add("%s", reconcile.ProblemLine(p))
	}
	for _, t := range r.Tenants {
		if t.PortsUsed >= t.Ports*8/10 {
			add("%s/%s has %d of %d source ports in use towards %s; new connections there fail from about 96 %% on: give the tenant more egress addresses",
				t.Cluster, t.Name, t.PortsUsed, t.Ports, t.BusiestDestination)
		}
	}
	for _, l := range reconcile.StrayLines(s.Memory, s.counters.Strays) {
		add("%s", reconcile.ProblemLine(l.Problem()))
	}
	for _, ref := range s.Memory.HeldRefs() {
		add("%s is held: its record vanished with many others, without a tombstone; `gateway-agent confirm-removals` lets it go", ref)
	}
	if s.Found {
		r.Pending = describeSteps(plan.Diff(want, s.state.WithoutSpills()))
	}
	r.Healthy = len(r.Problems) == 0 && len(r.Pending) == 0
}

func newTenantLine(ref reconcile.Ref, mask uint32, s sight) tenantLine {
	e, _ := s.Memory.Entry(ref)
	t := tenantLine{
		Cluster: ref.Cluster, Name: ref.Name, Namespaces: e.Record.Namespaces, Link: plan.LinkName(e.Number), State: "missing",
		Mark: fmt.Sprintf("%#x", plan.Mark(mask, e.Number)), GatewayIPs: e.Record.GatewayIPs, EgressIPs: e.Record.EgressIPs,
		Held: e.Held, Generation: e.Record.Generation,
	}
	if l, ok := s.state.Links[t.Link]; ok {
		t.MAC, t.State = l.MAC, "DOWN"
		if l.Ready {
			t.State = "UP"
		}
	}
	traffic := s.counters.Tenants[plan.TenantID(ref.Cluster, ref.Name)]
	t.NodeIPSources = s.counters.NodeSources[plan.TenantID(ref.Cluster, ref.Name)]
	t.Refused = s.counters.RefusedOf[plan.TenantID(ref.Cluster, ref.Name)]
	t.Packets, t.Bytes = traffic.FromPods.Packets, traffic.FromPods.Bytes
	use := s.usage.Marks[plan.Mark(mask, e.Number)]
	t.Connections, t.PortsUsed, t.Ports = use.Connections, use.Used, flows.Ports
	if use.Used > 0 {
		t.BusiestDestination = use.Busiest.Where()
	}
	return t
}

func routeLines(s sight) []routeLine {
	nodes := map[netip.Prefix]string{}
	for cluster, c := range s.Memory.Clusters {
		for name, n := range c.Nodes {
			for _, p := range n.Subnets {
				nodes[p] = cluster + "/" + name
			}
		}
	}
	var out []routeLine
	for route := range s.state.Routes {
		out = append(out, routeLine{route.Dst, route.Via, route.Dev, nodes[route.Dst]})
	}
	slices.SortFunc(out, func(a, b routeLine) int { return cmp.Or(a.Subnet.Compare(b.Subnet), a.Via.Compare(b.Via)) })
	return out
}

func joinAddrs(list []netip.Addr) string {
	var out []string
	for _, f := range tenant.Families() {
		for _, a := range f.Addrs(list) {
			out = append(out, a.String())
		}
	}
	return strings.Join(out, ",")
}
