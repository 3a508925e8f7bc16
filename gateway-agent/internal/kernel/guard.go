// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// nftObject is one entry of nft's JSON output; one field is set.
type nftObject struct {
	Set *struct {
		Name string            `json:"name"`
		Elem []json.RawMessage `json:"elem"`
	} `json:"set"`
	Map *struct {
		Name string               `json:"name"`
		Elem [][2]json.RawMessage `json:"elem"`
	} `json:"map"`
	Rule *struct {
		Chain   string                       `json:"chain"`
		Comment string                       `json:"comment"`
		Expr    []map[string]json.RawMessage `json:"expr"`
	} `json:"rule"`
}

// listGuard returns the objects of the guard table, none if there is no table.
// Options are nft's: --terse leaves out what the sets hold.
func (k *Kernel) listGuard(ctx context.Context, options ...string) ([]nftObject, error) {
	return k.startListing(ctx, append(options, "inet", plan.GuardTable)...).objects()
}

// listing is nft while it lists a table.
type listing struct{ *command }

// startListing has a table listed; options come before its family and name.
func (k *Kernel) startListing(ctx context.Context, table ...string) listing {
	options, name := table[:len(table)-2], table[len(table)-2:]
	return listing{start(ctx, nil, k.nft, slices.Concat(options, []string{"-j", "list", "table"}, name)...)}
}

// objects returns what is in the table, nothing if it does not exist.
func (l listing) objects() ([]nftObject, error) {
	out, err := l.wait()
	if err != nil {
		if strings.Contains(err.Error(), "No such file or directory") {
			return nil, nil
		}
		return nil, err
	}
	var list struct {
		Nftables []nftObject `json:"nftables"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(l.cmd.Args, " "), err)
	}
	return list.Nftables, nil
}

// readGuard reads the guard as nft lists it.
func readGuard(l listing) (plan.Guard, error) {
	objects, err := l.objects()
	g := plan.Guard{Sets: make(map[string]plan.GuardSet)}
	for _, o := range objects {
		switch {
		case o.Set != nil:
			set := make(plan.GuardSet, len(o.Set.Elem))
			if plan.CountedSet(o.Set.Name) {
				g.Sets[o.Set.Name] = set
				continue
			}
			for _, e := range o.Set.Elem {
				set[element(e, strings.HasPrefix(o.Set.Name, "pods"))] = ""
			}
			g.Sets[o.Set.Name] = set
		case o.Map != nil:
			set := make(plan.GuardSet, len(o.Map.Elem))
			for _, e := range o.Map.Elem {
				set[part(e[0])+" : "+part(e[1])] = ""
			}
			g.Sets[o.Map.Name] = set
		case o.Rule != nil:
			g.Rules = append(g.Rules, plan.GuardRule{Chain: o.Rule.Chain, Comment: o.Rule.Comment})
		}
	}
	return g, err
}

// element writes an element of a set as plans do: an address, a prefix, or parts
// joined by " . ". What is none of these comes out as JSON, and so is replaced.
func element(raw json.RawMessage, prefixes bool) string {
	if addr, is := plainText(raw); is {
		if prefixes && strings.Contains(addr, ":") {
			return addr + "/128"
		} else if prefixes {
			return addr + "/32"
		}
		return addr
	}
	var e struct {
		Prefix *struct {
			Addr string `json:"addr"`
			Len  int    `json:"len"`
		} `json:"prefix"`
		Concat []json.RawMessage `json:"concat"`
	}
	if json.Unmarshal(raw, &e) != nil {
		return string(raw)
	}
	if e.Prefix != nil {
		return fmt.Sprintf("%s/%d", e.Prefix.Addr, e.Prefix.Len)
	}
	var parts []string
	for _, p := range e.Concat {
		parts = append(parts, part(p))
	}
	if len(parts) > 0 {
		return strings.Join(parts, " . ")
	}
	return string(raw)
}

// part writes a name, an address or a mark.
func part(raw json.RawMessage) string {
	if text, is := plainText(raw); is {
		return text
	}
	if mark, err := strconv.ParseUint(string(raw), 10, 32); err == nil {
		return "0x" + strconv.FormatUint(mark, 16)
	}
	return string(raw)
}

// plainText returns a JSON string without escapes: no name and no address has
// one. It is called for each of 30,000 elements.
func plainText(raw json.RawMessage) (string, bool) {
	if n := len(raw); n >= 2 && raw[0] == '"' && raw[n-1] == '"' && bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : n-1]), true
	}
	return "", false
}

// applyGuard carries out guard steps in one transaction.
func (k *Kernel) applyGuard(ctx context.Context, steps []plan.Step) error {
	if elementsOnly(steps) {
		return k.applyElements(steps)
	}
	var lines []string
	for _, s := range steps {
		lines = append(lines, plan.NFTLines(s)...)
	}
	_, err := run(ctx, []byte(strings.Join(lines, "\n")+"\n"), k.nft, "-f", "-")
	return err
}

// guardCounters sums the packets that each rule of the guard dropped, by what
// the rule is for.
func (k *Kernel) guardCounters(ctx context.Context) (map[string]Counter, error) {
	objects, err := k.listGuard(ctx, "--terse")
	out := make(map[string]Counter)
	for _, o := range objects {
		if o.Rule == nil {
			continue
		}
		what, _, _ := strings.Cut(o.Rule.Comment, " #")
		for _, e := range o.Rule.Expr {
			var c Counter
			if raw, ok := e["counter"]; ok && json.Unmarshal(raw, &c) == nil {
				out[what] = out[what].plus(c)
			}
		}
	}
	return out, err
}
