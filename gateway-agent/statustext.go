// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// maxPending is how many of the missing steps a person is shown.
const maxPending = 20

// print writes the report for a person, in the manner of the program that this
// one replaces: one section for each thing that one would look at by hand.
func (r report) print(w io.Writer) error {
	var b bytes.Buffer
	state := "not running"
	if r.Running {
		state = "running"
	}
	health := "HEALTHY"
	if !r.Healthy {
		health = "NOT HEALTHY"
	}
	fmt.Fprintf(&b, "Gateway %s (group %s, %s), daemon %s: %s\n", r.Gateway, r.Group, r.Version, state, health)
	fmt.Fprintf(&b, "%s towards the nodes, %s towards the outside; rules by iptables %s\n", r.Internal, r.External, r.IPTables)

	table(&b, "Clusters", "CLUSTER\tGENERATION\tTENANTS\tNODES", len(r.Clusters), func(i int) string {
		c := r.Clusters[i]
		return fmt.Sprintf("%s\t%d\t%d\t%d", c.Name, c.Generation, c.Tenants, c.Nodes)
	})
	table(&b, "Tenants", "TENANT\tGATEWAY IPS\tEGRESS IPS\tPACKETS\tBYTES\tCONNECTIONS\tPORTS\tREFUSED\tNODE-IP SOURCES\tNOTE", len(r.Tenants), func(i int) string {
		t := r.Tenants[i]
		note := "-"
		if t.Held {
			note = "HELD"
		}
		refused := uint64(0)
		for _, n := range t.Refused {
			refused += n
		}
		return fmt.Sprintf("%s/%s\t%s\t%s\t%d\t%d\t%d\t%d%%\t%d\t%d\t%s", t.Cluster, t.Name, joinAddrs(t.GatewayIPs), joinAddrs(t.EgressIPs), t.Packets, t.Bytes,
			t.Connections, t.PortsUsed*100/t.Ports, refused, t.NodeIPSources, note)
	})
	table(&b, "MACVLAN links", "LINK\tSTATE\tMAC\tMARK\tTENANT", len(r.Tenants), func(i int) string {
		t := r.Tenants[i]
		return fmt.Sprintf("%s@%s\t%s\t%s\t%s\t%s/%s", t.Link, r.Internal, t.State, t.MAC, t.Mark, t.Cluster, t.Name)
	})
	table(&b, "Return routes (pod subnets)", "SUBNET\tVIA\tDEV\tNODE", len(r.Routes), func(i int) string {
		t := r.Routes[i]
		return fmt.Sprintf("%s\t%s\t%s\t%s", t.Subnet, t.Via, t.Dev, cmp.Or(t.Node, "-"))
	})
	r.printGuards(&b)
	table(&b, "Nodes that send past a tenant's link", "NODE\tTENANT\tPACKETS", len(r.Strays), func(i int) string {
		s := r.Strays[i]
		return fmt.Sprintf("%s\t%s\t%d", s.Node, cmp.Or(s.Tenant, "-"), s.Packets)
	})
	r.printTrouble(&b)
	_, err := w.Write(b.Bytes())
	return err
}

// printGuards shows the guards that dropped something: most never do.
func (r report) printGuards(b *bytes.Buffer) {
	busy := slices.Clone(r.Guards)
	busy = slices.DeleteFunc(busy, func(g guardLine) bool { return g.Packets == 0 })
	quiet := len(r.Guards) - len(busy)
	if len(busy) == 0 && quiet > 0 {
		fmt.Fprintf(b, "\n--- Guards ---\n%d guards stand, and none has dropped a packet\n", quiet)
		return
	}
	table(b, "Guards", "DROPPED\tWHAT", len(busy), func(i int) string {
		return fmt.Sprintf("%d\t%s", busy[i].Packets, busy[i].What)
	})
	if quiet > 0 {
		fmt.Fprintf(b, "and %d more without a drop\n", quiet)
	}
}

func (r report) printTrouble(b *bytes.Buffer) {
	if len(r.Problems) > 0 {
		fmt.Fprint(b, "\n--- Problems ---\n")
		for _, p := range r.Problems {
			fmt.Fprintln(b, "!", p)
		}
	}
	if len(r.Pending) > 0 {
		fmt.Fprintf(b, "\n--- %d changes that the kernel still lacks ---\n", len(r.Pending))
		for _, s := range r.Pending[:min(len(r.Pending), maxPending)] {
			fmt.Fprintln(b, s)
		}
		if n := len(r.Pending) - maxPending; n > 0 {
			fmt.Fprintf(b, "... and %d more\n", n)
		}
	}
}

// table writes a section; an empty one says so.
func table(b *bytes.Buffer, title, header string, rows int, row func(int) string) {
	fmt.Fprintf(b, "\n--- %s ---\n", title)
	if rows == 0 {
		fmt.Fprintln(b, "none")
		return
	}
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, header)
	for i := range rows {
		fmt.Fprintln(t, row(i))
	}
	t.Flush()
}
