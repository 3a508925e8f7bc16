// SPDX-License-Identifier: Apache-2.0

package daemon

// Trigger tells one loop that there is something to do. Any number of pokes
// before the loop looks count as one. Make it with NewTrigger.
type Trigger struct{ c chan struct{} }

// NewTrigger returns a trigger that has not been poked.
func NewTrigger() *Trigger { return &Trigger{c: make(chan struct{}, 1)} }

// Poke never blocks.
func (t *Trigger) Poke() {
	select {
	case t.c <- struct{}{}:
	default: // it is pending already
	}
}

// C receives once for one or more pokes.
func (t *Trigger) C() <-chan struct{} { return t.c }
