// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	phase  = 50 * time.Millisecond
	phases = 10 // of each gateway in a round
)

func enter(ns string) error {
	h, err := netns.GetFromName(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	return netns.Set(h)
}

// clock reads the time that one processor spent on the path: that of the
// calling thread, which includes the softirqs it raises, and that of the
// kernel thread that takes softirqs over when there are too many of them.
type clock struct{ ksoftirqd string }

func newClock(cpu int) (clock, error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return clock{}, err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && strings.TrimSpace(string(b)) == "ksoftirqd/"+strconv.Itoa(cpu) {
			return clock{filepath.Join(filepath.Dir(name), "schedstat")}, nil
		}
	}
	return clock{}, fmt.Errorf("no ksoftirqd/%d in /proc", cpu)
}

func (c clock) now() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, err
	}
	b, err := os.ReadFile(c.ksoftirqd)
	if err != nil {
		return 0, err
	}
	ran, _, _ := strings.Cut(string(b), " ")
	ns, err := strconv.ParseInt(ran, 10, 64)
	return time.Duration(ts.Nano() + ns), err
}

// load is one kind of traffic, prepared for two gateways.
type load interface {
	// step sends a little through gateway 0 (under test) or 1 (plain), and
	// returns what arrived.
	step(gateway int) (float64, error)
}

// round alternates between the two gateways. It returns what the gateway under
// test carried per second of processor time, and that in relation to what the
// plain one carried right after: medians over the pairs of phases. A neighbour
// of this machine that takes a phase's time does not touch them.
func round(c clock, l load) (ratio, rate float64, err error) {
	var ratios, rates []float64
	for range phases {
		var r [2]float64
		for g := range r {
			if r[g], err = one(c, l, g); err != nil {
				return 0, 0, err
			}
		}
		if r[0] == 0 || r[1] == 0 {
			continue // the thread, or who hands packets on, did not get to run
		}
		ratios, rates = append(ratios, r[0]/r[1]), append(rates, r[0])
	}
	if len(ratios) == 0 {
		return 0, 0, errors.New("nothing arrived")
	}
	return median(ratios), median(rates), nil
}

// one is a phase: it returns what gateway g carried per second.
func one(c clock, l load, g int) (float64, error) {
	before, err := c.now()
	if err != nil {
		return 0, err
	}
	carried := 0.0
	for end := time.Now().Add(phase); time.Now().Before(end); {
		n, err := l.step(g)
		if err != nil {
			return 0, err
		}
		carried += n
	}
	after, err := c.now()
	if err != nil {
		return 0, err
	}
	if after <= before {
		return 0, nil
	}
	return carried / (after - before).Seconds(), nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
