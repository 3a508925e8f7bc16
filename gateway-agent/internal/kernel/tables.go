// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// tables is iptables of one family. Whole batches go through iptables-restore,
// which go-iptables does not have; single steps go through go-iptables.
type tables struct {
	*iptables.IPTables
	save, restore string
	version       string // as iptables --version puts it: "1.8.9 (nf_tables)"
}

func openTables(program string, proto iptables.Protocol) (*tables, error) {
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(program), iptables.Timeout(lockWait))
	if err != nil {
		return nil, err
	}
	t := &tables{IPTables: ipt}
	if t.save, err = exec.LookPath(program + "-save"); err != nil {
		return nil, err
	}
	if t.restore, err = exec.LookPath(program + "-restore"); err != nil {
		return nil, err
	}
	out, err := exec.Command(program, "--version").Output()
	if err != nil {
		return nil, err
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(out)), " v")
	t.version = version
	return t, nil
}

// legacy tells whether this iptables writes to the older of the two kernel
// interfaces.
func (t *tables) legacy() bool { return !strings.Contains(t.version, "nf_tables") }

// observe adds our chains, and the rules elsewhere that jump into them. Options
// are those of iptables-save: "-t filter" for one table.
func (t *tables) observe(ctx context.Context, f tenant.Family, s *plan.State, options ...string) error {
	out, err := run(ctx, nil, t.save, options...)
	if err != nil {
		return err
	}
	return parseSave(bytes.NewReader(out), f, s)
}

// parseSave reads the output of iptables-save: our chains, and the rules
// elsewhere that jump into them.
func parseSave(r io.Reader, f tenant.Family, s *plan.State) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	table, position := "", make(map[plan.ChainID]int)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"+plan.ChainPrefix):
			name, _, _ := strings.Cut(line[1:], " ")
			s.Chains[plan.ChainID{Family: f, Table: table, Name: name}] = nil
		case strings.HasPrefix(line, "-A "):
			name, rule, _ := strings.Cut(line[3:], " ")
			id := plan.ChainID{Family: f, Table: table, Name: name}
			if strings.HasPrefix(name, plan.ChainPrefix) {
				s.Chains[id] = append(s.Chains[id], rule)
				continue
			}
			position[id]++
			if strings.Contains(" "+rule, " -j "+plan.ChainPrefix) {
				s.Hooks[id] = append(s.Hooks[id], plan.Hook{Position: position[id], Rule: rule})
			}
		}
	}
	return lines.Err()
}

// load carries out rule steps of one family in one call: all of them, or none
// of each table.
func (t *tables) load(ctx context.Context, steps []plan.Step) error {
	lines := make(map[string][]string)
	for _, s := range steps {
		_, table := plan.RuleFamily(s)
		lines[table] = append(lines[table], plan.RestoreLines(s)...)
	}
	var in bytes.Buffer
	for _, table := range tablesOf(steps) {
		fmt.Fprintf(&in, "*%s\n%s\nCOMMIT\n", table, strings.Join(lines[table], "\n"))
	}
	_, err := run(ctx, in.Bytes(), t.restore, "--noflush", "-w", fmt.Sprint(lockWait))
	return err
}

// load carries out rule steps of one family, and keeps what is known of the
// rules true.
func (k *Kernel) load(ctx context.Context, t *tables, steps []plan.Step) (err error) {
	transactions := 0
	f, _ := plan.RuleFamily(steps[0])
	if t.legacy() {
		known := k.legacySame(f)
		defer func() { k.legacyLoaded(f, known && err == nil) }()
	} else {
		if deletionsOnly(steps) {
			if known, err := k.unrule(f, steps); known || err != nil {
				return err
			}
		}
		transactions = len(tablesOf(steps))
	}
	return k.following(steps, transactions, func() error { return t.load(ctx, steps) })
}

// tablesOf names the tables of rule steps, in the order in which they occur.
func tablesOf(steps []plan.Step) []string {
	var names []string
	for _, s := range steps {
		if _, table := plan.RuleFamily(s); !slices.Contains(names, table) {
			names = append(names, table)
		}
	}
	return names
}

// single carries out one step; that it was carried out before is no error.
func (t *tables) single(ctx context.Context, step plan.Step) error {
	switch s := step.(type) {
	case plan.NewChain:
		if exists, err := t.ChainExists(s.ID.Table, s.ID.Name); err != nil || exists {
			return err
		}
		return t.NewChain(s.ID.Table, s.ID.Name)
	case plan.DelChain:
		if exists, err := t.ChainExists(s.ID.Table, s.ID.Name); err != nil || !exists {
			return err
		}
		return t.ClearAndDeleteChain(s.ID.Table, s.ID.Name)
	case plan.AddRule:
		return t.AppendUnique(s.ID.Table, s.ID.Name, words(s.Rule)...)
	case plan.DelRule:
		return t.DeleteIfExists(s.ID.Table, s.ID.Name, words(s.Rule)...)
	default:
		return t.load(ctx, []plan.Step{step})
	}
}

// words splits a rule; our comments hold no spaces.
func words(rule string) []string {
	out := strings.Fields(rule)
	for i := range out {
		out[i] = strings.Trim(out[i], `"`)
	}
	return out
}
