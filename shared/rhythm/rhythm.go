// SPDX-License-Identifier: Apache-2.0

// Package rhythm has the many things that a process does now and then happen at
// the same moments, so that they share wake-ups: to wake up costs an idle
// process more than most of what it wakes for.
package rhythm

import "time"

// Until returns how long it is from now to the next moment that is phase after a
// multiple of every: between a quarter and five quarters of every, so that a
// timer that fires a little early does not fire twice. every must be above 0.
func Until(now time.Time, every, phase time.Duration) time.Duration {
	now = now.Round(0).Add(-phase) // without its monotonic reading
	left := now.Truncate(every).Add(every).Sub(now)
	if left < every/4 {
		left += every
	}
	return left
}
