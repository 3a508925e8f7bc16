// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
)

const (
	segmentsPerSpool = 16 // the oldest sixteenth goes when the spool is full
	droppedFile      = "dropped"
	batchBytes       = 1 << 20
)

// spool is a bounded queue of texts on disk, or in memory.
//
// Appends are committed in groups: whoever finds no commit under way writes and
// syncs for all that came meanwhile, and they wait for that.
type spool struct {
	dir        string
	maxBytes   int64
	segmentMax int64
	ready      chan struct{} // signals that there is something to take

	mu       sync.Mutex
	segments []*segment // at least one; the last one is appended to
	number   uint64     // of the last segment
	dropped  uint64     // events dropped and not yet told
	total    int        // events that are not acknowledged

	group  *commit // collects appends while a commit is under way
	active bool    // a commit is under way
}

// commit is one write and sync for a group of appends.
type commit struct {
	lines []byte
	n     int
	done  chan struct{}
	err   error
}

// openSpool opens the spool in dir, which is created; dir "" means memory.
func openSpool(dir string, maxBytes int64) (*spool, error) {
	s := &spool{dir: dir, maxBytes: maxBytes, segmentMax: max(maxBytes/segmentsPerSpool, 1), ready: make(chan struct{}, 1)}
	if dir != "" {
		if err := s.recover(); err != nil {
			return nil, fmt.Errorf("audit spool: %w", err)
		}
	}
	if err := s.grow(); err != nil {
		return nil, fmt.Errorf("audit spool: %w", err)
	}
	if s.total > 0 {
		poke(s.ready)
	}
	return s, nil
}

// recover reads what an earlier life left.
func (s *spool) recover() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, f := range files { // sorted by name, that is by number
		number, ok := segmentNumber(f.Name())
		if !ok {
			continue
		}
		seg, err := recoverSegment(s.dir, number)
		if err != nil {
			return err
		}
		s.number = number
		if seg.n == 0 {
			if err := seg.remove(); err != nil {
				return err
			}
			continue
		}
		s.segments = append(s.segments, seg)
		s.total += seg.n
	}
	if b, err := os.ReadFile(filepath.Join(s.dir, droppedFile)); err == nil {
		s.dropped, _ = strconv.ParseUint(string(b), 10, 64) // damaged: the count is lost, not the gap
	}
	return nil
}

// grow starts a new segment, and drops the oldest ones beyond the bound.
func (s *spool) grow() error {
	seg, err := openSegment(s.dir, s.number+1)
	if err != nil {
		return err
	}
	s.number++
	s.segments = append(s.segments, seg)
	var size int64
	for _, seg := range s.segments {
		size += seg.size
	}
	for len(s.segments) > 1 && size+s.segmentMax > s.maxBytes {
		old := s.segments[0]
		s.segments = s.segments[1:]
		size -= old.size
		s.total -= old.n - old.sent
		s.setDropped(s.dropped + uint64(old.n-old.sent))
		if err := old.remove(); err != nil {
			return err
		}
	}
	return nil
}

// setDropped keeps the count on disk as well as can be: it is only a number in a
// message, and the disk may be what is full.
func (s *spool) setDropped(n uint64) {
	s.dropped = n
	if s.dir == "" {
		return
	}
	path := filepath.Join(s.dir, droppedFile)
	if n == 0 {
		_ = os.Remove(path)
		return
	}
	_ = os.WriteFile(path, []byte(strconv.FormatUint(n, 10)), 0o600)
}

// append adds the texts that write returns, and returns when they are on disk. No
// two calls of write overlap, and their texts stand in the order of the calls.
func (s *spool) append(write func() ([][]byte, error)) error {
	s.mu.Lock()
	texts, err := write()
	if err != nil {
		s.mu.Unlock()
		return err
	}
	if s.group == nil {
		s.group = &commit{done: make(chan struct{})}
	}
	g := s.group
	for _, t := range texts {
		g.lines = append(g.lines, encodeLine(t)...)
		g.n++
	}
	if s.active {
		// Whoever commits now takes this group next.
		s.mu.Unlock()
		<-g.done
		return g.err
	}
	s.active = true
	for s.group != nil {
		s.commit()
	}
	s.active = false
	s.mu.Unlock()
	return g.err
}

// commit writes the collected group. It releases the lock while it waits for
// the disk, so that the next group can collect: as long as a commit is active,
// nobody else appends to, drops or resets the last segment.
func (s *spool) commit() {
	g := s.group
	s.group = nil
	defer close(g.done)
	last := s.segments[len(s.segments)-1]
	if last.size >= s.segmentMax {
		if err := s.grow(); err != nil {
			g.err = fmt.Errorf("audit spool: %w", err)
			return
		}
		last = s.segments[len(s.segments)-1]
	}
	if last.file == nil {
		last.mem = append(last.mem, g.lines...)
	} else {
		s.mu.Unlock()
		err := last.appendFile(g.lines)
		s.mu.Lock()
		if err != nil {
			g.err = fmt.Errorf("audit spool: %w", err)
			return
		}
	}
	last.size += int64(len(g.lines))
	last.n += g.n
	s.total += g.n
	poke(s.ready)
}

// taken is a batch that was handed out: its texts, and the segments they are of.
type taken struct {
	texts [][]byte // nil for a damaged one
	from  []*segment
}

// take hands out up to max texts, oldest first.
func (s *spool) take(max int) (taken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var t taken
	for _, seg := range s.segments {
		texts, err := seg.next(max-len(t.texts), batchBytes)
		if err != nil {
			return t, fmt.Errorf("audit spool: %w", err)
		}
		for _, text := range texts {
			t.texts = append(t.texts, text)
			t.from = append(t.from, seg)
		}
		if seg.out < seg.n {
			break // order: nothing of the next one before this one is through
		}
	}
	return t, nil
}

// settle removes the first n texts of a batch, which were acknowledged; those
// after them will be handed out again. Segments that were dropped meanwhile are
// passed over.
func (s *spool) settle(t taken, n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, seg := range t.from {
		if i < n && slices.Contains(s.segments, seg) {
			seg.sent++
			s.total--
		}
	}
	var errs []error
	for len(s.segments) > 1 && s.segments[0].sent == s.segments[0].n {
		errs = append(errs, s.segments[0].remove())
		s.segments = s.segments[1:]
	}
	last := s.segments[len(s.segments)-1]
	if last.n > 0 && last.sent == last.n && !s.active {
		errs = append(errs, last.reset())
	}
	if n < len(t.texts) {
		for _, seg := range s.segments {
			errs = append(errs, seg.rewind())
		}
	}
	if s.total > 0 {
		poke(s.ready)
	}
	return errors.Join(errs...)
}

// takeDropped returns how many events were dropped. told(n) forgets them.
func (s *spool) takeDropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

func (s *spool) told(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setDropped(s.dropped - min(n, s.dropped))
}

// pending is the number of events that are not acknowledged yet.
func (s *spool) pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

func (s *spool) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.close())
	}
	return errors.Join(errs...)
}

// lose counts an event that can not be read any more.
func (s *spool) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setDropped(s.dropped + 1)
}
