// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"time"

	"egress-gateway.io/cluster-agent/internal/derive"
	"egress-gateway.io/shared/tenant"
)

// liveness remembers when each gateway's report last changed, by our own
// clock: a gateway whose clock is wrong is alive nevertheless.
type liveness map[string]seen

type seen struct {
	reported time.Time // as the gateway wrote it
	at       time.Time // by our clock
}

// look takes in the latest reports and judges who is alive. While NATS is away
// nobody ages: silence then says nothing about the gateways. next is when the
// next one falls silent.
func (l liveness) look(list []tenant.Summary, connected bool, now time.Time) (gateways map[string]derive.Gateway, next time.Time) {
	gateways = make(map[string]derive.Gateway, len(list))
	for _, s := range list {
		old, known := l[s.Gateway]
		if !known || !old.reported.Equal(s.Time) || !connected {
			old = seen{s.Time, now}
			l[s.Gateway] = old
		}
		dies := old.at.Add(silence)
		alive := now.Before(dies)
		gateways[s.Gateway] = derive.Gateway{Summary: s, Alive: alive}
		if alive && (next.IsZero() || dies.Before(next)) {
			next = dies
		}
	}
	for name := range l {
		if _, ok := gateways[name]; !ok {
			delete(l, name)
		}
	}
	return gateways, next
}
