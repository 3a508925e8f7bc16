// SPDX-License-Identifier: Apache-2.0

package rhythm

import (
	"testing"
	"time"
)

func TestUntil(t *testing.T) {
	at := func(d time.Duration) time.Time { return time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC).Add(d) }
	for _, c := range []struct{ now, every, phase, want time.Duration }{
		{0, time.Second, 0, time.Second},
		{time.Millisecond, time.Second, 0, 999 * time.Millisecond},
		{700 * time.Millisecond, time.Second, 0, 300 * time.Millisecond},
		{999 * time.Millisecond, time.Second, 0, 1001 * time.Millisecond}, // that was meant for the second's end
		{0, time.Second, 300 * time.Millisecond, 300 * time.Millisecond},
		{400 * time.Millisecond, time.Second, 300 * time.Millisecond, 900 * time.Millisecond},
		{3 * time.Second, 10 * time.Second, 0, 7 * time.Second},
	} {
		if got := Until(at(c.now), c.every, c.phase); got != c.want {
			t.Errorf("at %s, every %s, phase %s: %s, want %s", c.now, c.every, c.phase, got, c.want)
		}
	}
}

// TestTogether: timers of different length that began at different times meet.
func TestTogether(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	moments := map[time.Time]bool{}
	for _, every := range []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second} {
		now := begin.Add(every / 7)
		for now = now.Add(Until(now, every, 0)); now.Before(begin.Add(time.Minute)); now = now.Add(Until(now, every, 0)) {
			moments[now] = true
		}
	}
	if len(moments) != 60 {
		t.Errorf("%d wake-ups in a minute for what the one of a second could have done", len(moments))
	}
}
