// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"egress-gateway.io/gateway-agent/internal/plan"
	"egress-gateway.io/shared/rhythm"
	"egress-gateway.io/shared/tenant"
)

// Reporter carries snapshots to the clusters.
type Reporter struct {
	Gateway, Group, Version string
	Every                   time.Duration // how often the Summary is renewed
	Clock                   func() time.Time
	Log                     *slog.Logger
	Snapshot                func() *Snapshot
	Statuses                Statuses

	// Of the last report: hardly anything changes from one to the next.
	encoded map[Ref]encodedStatus
	of      *Snapshot
	all     map[string][]byte
	sum     tenant.Summary
}

type encodedStatus struct {
	tenant.Status
	bytes []byte
}

// reportTimeout bounds one report: the next one holds all that this one did.
const reportTimeout = 10 * time.Second

// Run reports whenever due receives and every so often, until ctx ends.
func (r *Reporter) Run(ctx context.Context, due <-chan struct{}) error {
	ticker := time.NewTicker(rhythm.Until(time.Now(), r.Every, 0))
	defer ticker.Stop()
	failing := false
	for {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-due:
			asked = true
		case <-ticker.C:
			ticker.Reset(rhythm.Until(time.Now(), r.Every, 0))
		}
		s := r.Snapshot()
		if s.Pass.Began.IsZero() {
			continue
		}
		err := r.report(ctx, s, asked || failing)
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

// report tells everything, or only the summary if that was done and nothing
// asks for more.
func (r *Reporter) report(ctx context.Context, s *Snapshot, everything bool) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	everything = everything || r.of != s
	all := r.records(s)
	if everything {
		return r.Statuses.Sync(ctx, all)
	}
	key := tenant.SummaryKey(r.Gateway)
	return r.Statuses.Renew(ctx, key, all[key])
}

// records returns everything to report, by key. The map holds until the next call.
func (r *Reporter) records(s *Snapshot) map[string][]byte {
	if r.of != s {
		r.of, r.all, r.sum = s, r.statuses(s), r.summary(s)
	}
	r.sum.Time = r.Clock().UTC()
	r.all[tenant.SummaryKey(r.Gateway)] = tenant.Encode(r.sum)
	return r.all
}

func (r *Reporter) statuses(s *Snapshot) map[string][]byte {
	out := make(map[string][]byte, len(s.Statuses)+1)
	encoded := make(map[Ref]encodedStatus, len(s.Statuses))
	for ref, st := range s.Statuses {
		e := r.encoded[ref]
		if e.bytes == nil || e.Status != st {
			e = encodedStatus{st, tenant.Encode(st)}
		}
		encoded[ref] = e
		out[tenant.StatusKey(r.Gateway, ref.Cluster, ref.Name)] = e.bytes
	}
	r.encoded = encoded
	return out
}

// summary is all of it but the time.
func (r *Reporter) summary(s *Snapshot) tenant.Summary {
	sum := tenant.Summary{
		Schema: tenant.Schema, Gateway: r.Gateway, Group: r.Group, Version: r.Version,
		Addresses: s.Addresses, Applied: map[string]int64{},
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
	return sum
}

// ProblemLine is a problem in one line for a person.
func ProblemLine(p plan.Problem) string {
	subject := strings.Trim(p.Cluster+"/"+p.Tenant+p.Node, "/")
	if subject != "" {
		subject += ": "
	}
	return subject + p.Reason + ": " + p.Message
}
