// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"slices"
	"sync"
	"time"
)

const (
	// clockSamples is how many exchanges with the server are looked back at. The
	// quickest of them tells the most.
	clockSamples = 16
	// clockWindow is how old an exchange may be: clocks drift, and are set.
	clockWindow = time.Minute
	// clockBeats is how many heartbeats of a writer are looked back at: a minute.
	clockBeats = 12
)

// serverClock compares the clock of the NATS server with ours, as NTP does (RFC
// 5905 section 8): the server stamped an answer at some moment between our
// question and its arrival. So the middle of the two is wrong by half of the
// round trip at most, and the sample with the shortest one is the best. The
// zero value knows nothing. Safe for concurrent use.
type serverClock struct {
	mu      sync.Mutex
	samples []clockSample
}

type clockSample struct {
	at               time.Time
	ahead, uncertain time.Duration
}

// add takes in that a question asked at one time was stamped by the server, and
// answered at another time of ours.
func (s *serverClock) add(asked, stamped, answered time.Time) {
	trip := answered.Sub(asked)
	if stamped.IsZero() || trip < 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.samples) == clockSamples {
		s.samples = slices.Delete(s.samples, 0, 1)
	}
	s.samples = append(s.samples, clockSample{answered, stamped.Sub(asked.Add(trip / 2)), trip / 2})
}

// reset forgets everything: another server may have another clock.
func (s *serverClock) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.samples = nil
}

// best returns the best sample of the window before now.
func (s *serverClock) best(now time.Time) (best clockSample, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.samples {
		if now.Sub(c.at) <= clockWindow && (!known || c.uncertain < best.uncertain) {
			best, known = c, true
		}
	}
	return best, known
}

// ServerClock returns how far the clock of the NATS server is ahead of this
// machine's, wrong by at most uncertain. It is known a second after a Follower
// or a Writer runs on the connection.
func (c *Conn) ServerClock() (ahead, uncertain time.Duration, known bool) {
	s, known := c.clock.best(time.Now())
	return s.ahead, s.uncertain, known
}

// Sign is a cluster's writer as its heartbeats show it.
type Sign struct {
	// Age is how long ago the last one was heard.
	Age time.Duration
	// Ahead is how far the writer's clock is ahead of this machine's. The server
	// stamps a heartbeat when it stores it, and the writer's own time stands in
	// it; the two differ by their clocks and by the time that the heartbeat was
	// on its way, of which the shortest of the last minute counts. Together with
	// ServerClock that gives Ahead: it is too small by that shortest time, and
	// wrong by ServerClock's uncertainty besides. When a heartbeat is read does
	// not matter.
	Ahead time.Duration
	// AheadKnown is false for a writer that is silent, or without a connection.
	AheadKnown bool
}

// Signs returns what the heartbeats show of each cluster's writer.
func (f *Follower) Signs() map[string]Sign {
	server, _, known := f.watch.conn.ServerClock()
	f.mu.Lock()
	defer f.mu.Unlock()
	now, out := f.clock(), make(map[string]Sign, len(f.beats))
	for name, b := range f.beats {
		s := Sign{Age: max(now.Sub(b.seen), 0)}
		if b.early && known {
			s.Age = max(now.Add(server).Sub(b.stored), 0)
		}
		if known && s.Age < clockWindow {
			s.Ahead, s.AheadKnown = server-slices.Min(b.lags), true
		}
		out[name] = s
	}
	return out
}
