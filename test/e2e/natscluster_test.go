// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

func threeServers(o *scenario.WorldOptions) { o.NATS = lab.NATSThree }

// afterElection is how long changes may take to arrive when a leader is lost:
// an election takes up to 9 s, and who asked in vain asks again.
const afterElection = time.Minute

// Each leader of a cluster of three NATS servers is killed in turn, and one is
// frozen, while tenants come and go: no packet is lost, every change arrives, and
// the audit has every event once.
func TestNATSLeadersLost(t *testing.T) {
	w := newWorld(t, threeServers)
	flows := w.twoTenants()
	w.must(w.CreatePool(w.ctx, scenario.LargePool("storm", 500)))
	storm := w.startStorm()
	js, done := w.jetstream()
	defer done()

	for _, group := range []string{"KV_egress-state", metaGroup, "EGRESS_AUDIT"} {
		leader := w.natsLeader(js, group)
		t.Logf("server %d, the leader of %s, is killed", leader+1, group)
		w.must(w.NATSServer(leader).Kill())
		w.changesArrive(fmt.Sprintf("killed-%d", leader))
		w.must(w.StartNATSServer(leader))
		w.natsUpToDate()
	}
	leader := w.natsLeader(js, "KV_egress-state")
	t.Logf("server %d, the leader of KV_egress-state, is frozen", leader+1)
	w.must(w.NATSServer(leader).Signal(syscall.SIGSTOP))
	w.changesArrive("frozen")
	w.must(w.NATSServer(leader).Signal(syscall.SIGCONT))
	w.natsUpToDate()

	storm.settle()
	w.auditIsWhole()
	w.allUnharmed(flows)
}

// metaGroup stands for the group of the cluster itself.
const metaGroup = "the cluster"

// natsLeader waits for a leader of a group, and returns its number.
func (w *world) natsLeader(js jetstream.JetStream, group string) int {
	w.t.Helper()
	leader := -1
	w.within(afterElection, "a leader of "+group, func() (bool, error) {
		var name string
		var err error
		if group == metaGroup {
			name, err = w.metaLeader()
		} else {
			name, err = streamLeader(w.ctx, js, group)
		}
		leader = slices.Index([]string{"nats-server-1", "nats-server-2", "nats-server-3"}, name)
		return leader >= 0, err
	})
	return leader
}

func streamLeader(ctx context.Context, js jetstream.JetStream, stream string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil || s.CachedInfo().Cluster == nil {
		return "", err
	}
	return s.CachedInfo().Cluster.Leader, nil
}

func (w *world) metaLeader() (string, error) {
	var page struct {
		Meta struct {
			Leader string `json:"leader"`
		} `json:"meta_cluster"`
	}
	for i := range 3 {
		if err := w.natsPage(i, "jsz", &page); err != nil {
			return "", err
		}
		if page.Meta.Leader != "" {
			return page.Meta.Leader, nil
		}
	}
	return "", nil
}

func (w *world) natsPage(server int, page string, into any) error {
	ctx, cancel := context.WithTimeout(w.ctx, time.Second)
	defer cancel()
	body, err := w.HTTPGet(ctx, lab.PartControl, w.NATSMonitor(server, page))
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(body), into)
}

// natsUpToDate waits until all servers have everything again.
func (w *world) natsUpToDate() {
	w.t.Helper()
	w.within(afterElection, "three servers to be up to date", func() (bool, error) {
		for i := range 3 {
			var page struct{ Status string }
			if err := w.natsPage(i, "healthz", &page); err != nil || page.Status != "ok" {
				return false, err
			}
		}
		return true, nil
	})
}

// changesArrive proves that a change still comes through, and how soon.
func (w *world) changesArrive(namespace string) {
	w.t.Helper()
	began := time.Now()
	w.must(w.AddNamespace(w.ctx, namespace))
	w.must(w.Label(w.ctx, namespace, "storm"))
	t, err := w.WaitReady(w.ctx, namespace, afterElection)
	w.must(err)
	w.t.Logf("a new tenant was ready %s later", time.Since(began).Round(100*time.Millisecond))
	w.allow(t)
	w.seenAs(w.pod("node1", namespace), t)
}

func (w *world) within(limit time.Duration, what string, ok func() (bool, error)) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, limit)
	defer cancel()
	w.must(scenario.Until(ctx, what, func(context.Context) (bool, error) { return ok() }))
}

// storm adds and removes tenants all the time.
type storm struct {
	w    *world
	stop context.CancelFunc
	done sync.WaitGroup

	stays, goes []string
	err         error
}

const (
	stormEvery = 150 * time.Millisecond
	stormLives = 5 // of so many tenants one stays
)

func (w *world) startStorm() *storm {
	ctx, stop := context.WithCancel(w.ctx)
	s := &storm{w: w, stop: stop}
	w.t.Cleanup(func() { stop(); s.done.Wait() })
	s.done.Go(func() {
		for n := 0; ctx.Err() == nil && s.err == nil; n++ {
			s.err = s.step(n)
			select {
			case <-ctx.Done():
			case <-time.After(stormEvery):
			}
		}
	})
	return s
}

// step adds a tenant, and removes an earlier one.
func (s *storm) step(n int) error {
	name := fmt.Sprintf("storm-%d", n)
	if err := s.w.AddNamespace(s.w.ctx, name); err != nil {
		return err
	}
	if err := s.w.Label(s.w.ctx, name, "storm"); err != nil {
		return err
	}
	s.stays = append(s.stays, name)
	if n%stormLives == 0 || len(s.stays) < 2*stormLives {
		return nil
	}
	gone := s.stays[n%len(s.stays)]
	s.stays = slices.DeleteFunc(s.stays, func(name string) bool { return name == gone })
	s.goes = append(s.goes, gone)
	return s.w.Unlabel(s.w.ctx, gone)
}

// settle ends the storm, and fails the test unless each tenant that shall be
// there is, and no other.
func (s *storm) settle() {
	s.w.t.Helper()
	s.stop()
	s.done.Wait()
	s.w.must(s.err)
	for _, name := range s.stays {
		t, err := s.w.WaitReady(s.w.ctx, name, afterElection)
		s.w.must(err)
		s.w.allow(t)
	}
	for _, name := range s.goes {
		s.w.must(s.w.WaitGone(s.w.ctx, name, afterElection))
	}
	var state scenario.GatewayState
	s.w.until("nothing to be left of those who went", func() (bool, error) {
		var err error
		if state, err = s.w.Gateway(); err != nil {
			return false, err
		}
		for _, name := range s.goes {
			if left := state.Mentions("lab/" + name); len(left) > 0 {
				return false, fmt.Errorf("left: %v", left)
			}
		}
		return true, nil
	})
	for _, name := range s.stays {
		if len(state.Mentions("lab/"+name)) == 0 {
			s.w.t.Errorf("%s is ready, and not in the gateway's kernel", name)
		}
	}
	s.w.t.Logf("%d tenants came, %d of them went", len(s.stays)+len(s.goes), len(s.goes))
}
