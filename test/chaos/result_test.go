// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"egress-gateway.io/test/scenario"
)

// What is lost while a hand keeps all tenants from their nodes is not the agents'.
func TestLostByAgents(t *testing.T) {
	w := &world{began: zero, opts: options{Log: t.Output()}, excuses: []excuse{{"a route", second(10), second(12)}}}
	outage := func(from, to float64, lost int) scenario.Outage {
		return scenario.Outage{From: second(from), To: second(to), Lost: lost}
	}
	r := result{Excused: map[string]time.Duration{}}
	for _, f := range []scenario.FlowResult{
		{Sent: 1000, Answered: 850, Outages: []scenario.Outage{outage(9.9, 12.7, 140), outage(20, 20.2, 10)}},
		{Sent: 1000, Answered: 997, Outages: []scenario.Outage{outage(30, 30.06, 3)}},
	} {
		w.judgeFlow(longFlow{name: "a flow", result: f}, &r)
	}
	if r.Sent != 2000 || r.Lost != 153 || r.LostByAgents != 13 || r.Longest != 200*time.Millisecond || r.Excused["a route"] != 2800*time.Millisecond {
		t.Errorf("%d sent, %d lost, %d by agents, longest %s, excused %v", r.Sent, r.Lost, r.LostByAgents, r.Longest, r.Excused)
	}
	var b strings.Builder
	r.print(&b)
	if want := "13 of 2000 UDP packets lost by the agents' own actions (aim 0), 153 all told"; !strings.Contains(b.String(), want) {
		t.Errorf("%q is not in\n%s", want, b.String())
	}
}
