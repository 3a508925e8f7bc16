// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/tenant"
)

// Snapshot is what the loop knew after its last pass. It must not be changed.
type Snapshot struct {
	// Began tells when the last pass began; zero before the first.
	Began time.Time
	Pass  Pass
	// Known says that there is something to serve from: a disk copy, or a
	// confirmed view. Without it the gateway is not ready.
	Known    bool
	Memory   Memory
	Statuses map[Ref]tenant.Status
	Problems []plan.Problem
	// Addresses are the VM's own.
	Addresses  []netip.Addr
	Heartbeats map[string]time.Time
}

// Snapshot returns the latest. Safe for concurrent use.
func (l *Loop) Snapshot() *Snapshot { return l.snapshot.Load() }

// Counts returns how many tenants are programmed, failed and held. A held one
// counts as one of the other two as well.
func (s *Snapshot) Counts() (programmed, failed, held int) {
	for _, st := range s.Statuses {
		if st.Programmed {
			programmed++
		} else {
			failed++
		}
	}
	return programmed, failed, len(s.Memory.HeldRefs())
}

// publish makes the outcome of a pass known: to readers of the snapshot, in the
// log and in the audit, there only what has changed.
func (l *Loop) publish(views map[string]View, res result, p Pass) {
	problems := slices.Concat(l.damaged, res.problems, l.Trouble())
	statuses := l.statusesOf(res, problems, p.Err)
	l.tellPrograms(statuses)
	l.tellProblems(problems)
	l.statuses = statuses
	snap := &Snapshot{
		Began: l.Clock().Add(-p.Duration), Pass: p, Known: l.onDisk, Memory: l.memory.clone(), Statuses: statuses,
		Problems: problems, Addresses: res.host.Own, Heartbeats: map[string]time.Time{},
	}
	for cluster, v := range views {
		snap.Heartbeats[cluster] = v.Heartbeat
	}
	l.snapshot.Store(snap)
}

// statusesOf says of each tenant whether the kernel holds all that its record
// asks for. If the pass as a whole failed, nothing new is known: tenants of
// which nothing was known are reported as failed, others as before.
func (l *Loop) statusesOf(res result, problems []plan.Problem, err error) map[Ref]tenant.Status {
	out := map[Ref]tenant.Status{}
	byTenant := map[Ref]plan.Problem{}
	for _, p := range problems {
		if _, known := byTenant[Ref{p.Cluster, p.Tenant}]; p.Tenant != "" && !known {
			byTenant[Ref{p.Cluster, p.Tenant}] = p
		}
	}
	for _, r := range l.memory.Refs() {
		e, _ := l.memory.Entry(r)
		st := tenant.Status{
			Schema: tenant.Schema, Gateway: l.Gateway, Cluster: r.Cluster, Name: r.Name,
			UID: e.Record.UID, Generation: e.Record.Generation, Programmed: true,
		}
		problem, hasProblem := byTenant[r]
		failure, failed := res.failures[r.String()]
		if host, bad := res.failures[""]; bad && !failed && host.Step != nil {
			failure, failed = host, true // nobody can be sure of anything
		}
		switch {
		case err != nil:
			if before, known := l.statuses[r]; known && before.UID == st.UID && before.Generation == st.Generation {
				out[r] = before
				continue
			}
			st.Programmed, st.Reason, st.Message = false, ReasonHostFailed, err.Error()
		case failed:
			st.Programmed, st.Reason, st.Message = false, ReasonStepFailed, failure.message()
			if failure.ofHost() {
				st.Reason = ReasonHostFailed
			}
		case hasProblem && problem.Reason == ReasonBadRecord:
			st.Reason, st.Message = problem.Reason, problem.Message // the last good content is programmed
		case hasProblem:
			st.Programmed, st.Reason, st.Message = false, problem.Reason, problem.Message
		case e.Held:
			st.Reason, st.Message = ReasonHeld, heldMessage
		}
		st.Time = l.Clock().UTC()
		if before, known := l.statuses[r]; known && sameContent(before, st) {
			st.Time = before.Time
		}
		out[r] = st
	}
	for _, gone := range l.memory.Departing {
		if _, back := out[gone.Ref]; !back {
			out[gone.Ref] = l.departing(gone, res)
		}
	}
	return out
}

// departing is the status of a tenant of which the kernel still holds
// something: its addresses must not be given to anybody yet.
func (l *Loop) departing(gone Removal, res result) tenant.Status {
	st := tenant.Status{
		Schema: tenant.Schema, Gateway: l.Gateway, Cluster: gone.Cluster, Name: gone.Name,
		UID: gone.UID, Generation: gone.Generation, Reason: ReasonDeparting, Time: l.Clock().UTC(),
	}
	if f, failed := res.failures[gone.String()]; failed {
		st.Message = f.message()
	}
	if before, known := l.statuses[gone.Ref]; known && sameContent(before, st) {
		st.Time = before.Time
	}
	return st
}

const heldMessage = "its record vanished together with many others, without a tombstone; it is served on until it returns, is released, or `gateway-agent confirm-removals` is run on the gateway"

func (f Failure) message() string {
	if f.Step == nil {
		return f.Err.Error()
	}
	return fmt.Sprintf("%s: %v", f.Step, f.Err)
}

func sameContent(a, b tenant.Status) bool {
	a.Time, b.Time = time.Time{}, time.Time{}
	return a == b
}

// Reporter carries snapshots to the clusters.
type Reporter struct {
	Gateway, Group, Version string
	Every                   time.Duration // how often the Summary is renewed
	Clock                   func() time.Time
	Log                     *slog.Logger
	Snapshot                func() *Snapshot
	Statuses                Statuses
}

// reportTimeout bounds one report: the next one holds all that this one did.
const reportTimeout = 10 * time.Second

// Run reports whenever due receives and every so often, until ctx ends.
func (r Reporter) Run(ctx context.Context, due <-chan struct{}) error {
	ticker := time.NewTicker(r.Every)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-due:
		case <-ticker.C:
		}
		s := r.Snapshot()
		if s.Began.IsZero() {
			continue
		}
		err := r.report(ctx, s)
		if failed := err != nil; failed != failing && ctx.Err() == nil {
			failing = failed
			if failed {
				r.Log.Warn("the clusters can not be told what is programmed; trying on", "err", err)
			} else {
				r.Log.Info("the clusters are told what is programmed again")
			}
		}
	}
}

func (r Reporter) report(ctx context.Context, s *Snapshot) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	return r.Statuses.Sync(ctx, r.records(s))
}

// records returns everything to report, by key.
func (r Reporter) records(s *Snapshot) map[string][]byte {
	out := make(map[string][]byte, len(s.Statuses)+1)
	for ref, st := range s.Statuses {
		out[tenant.StatusKey(r.Gateway, ref.Cluster, ref.Name)] = tenant.Encode(st)
	}
	sum := tenant.Summary{
		Schema: tenant.Schema, Gateway: r.Gateway, Group: r.Group, Version: r.Version,
		Addresses: s.Addresses, Applied: map[string]int64{}, Time: r.Clock().UTC(),
	}
	sum.Tenants, sum.Failed, sum.Held = s.Counts()
	for cluster, c := range s.Memory.Clusters {
		if cluster != adoptedCluster {
			sum.Applied[cluster] = c.Generation
		}
	}
	for _, p := range s.Problems {
		sum.Problems = append(sum.Problems, ProblemLine(p))
	}
	if s.Pass.Err != nil {
		sum.Problems = append(sum.Problems, s.Pass.Err.Error())
	}
	out[tenant.SummaryKey(r.Gateway)] = tenant.Encode(sum)
	return out
}

// ProblemLine is a problem in one line for a person.
func ProblemLine(p plan.Problem) string {
	subject := strings.Trim(p.Cluster+"/"+p.Tenant+p.Node, "/")
	if subject != "" {
		subject += ": "
	}
	return subject + p.Reason + ": " + p.Message
}

// fresh returns the problems that are not in before, and all of now as a set.
func fresh(now []plan.Problem, before map[plan.Problem]bool) (list []plan.Problem, all map[plan.Problem]bool) {
	all = make(map[plan.Problem]bool, len(now))
	for _, p := range now {
		if !before[p] && !all[p] {
			list = append(list, p)
		}
		all[p] = true
	}
	return list, all
}
