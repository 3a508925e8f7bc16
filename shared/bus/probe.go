// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	suspectAfter = 2 * time.Second // a call without an answer for so long makes the server suspect
	probeTimeout = 2 * time.Second // a server that does not answer a ping in so long is left
)

// suspect watches over a call until its context ends: if that takes long, the
// server is asked whether it is there at all, and left for another one if not.
// The regular pings would notice a frozen server only after half a minute, and
// in a cluster the others are well.
func (c *Conn) suspect(call context.Context) {
	t := time.NewTimer(suspectAfter)
	defer t.Stop()
	select {
	case <-call.Done():
		return
	case <-t.C:
	}
	if !c.probing.CompareAndSwap(false, true) {
		return // another call has asked
	}
	defer c.probing.Store(false)
	url := c.nc.ConnectedUrlRedacted()
	err := c.nc.FlushTimeout(probeTimeout)
	if err != nats.ErrTimeout {
		return // it is there; or the connection has broken by itself
	}
	c.log.Warn("NATS server does not answer, changing over", "server", url)
	if err := c.nc.ForceReconnect(); err != nil {
		c.log.Debug("the connection is being closed", "err", err)
	}
}
