// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The journal holds what has changed since the disk copy was written: writing a
// change of one tenant by itself takes a few milliseconds less than writing 4,000
// tenants anew. Its first line is the checksum of the disk copy that it goes on
// from, and each other one a checksum, a space and a delta as JSON. The checksum
// is over that of the line before and the delta: so lines have one order. What a
// crash cuts off was not in the kernel yet.
const journalName = "state.journal"

const (
	// maxJournal is the size above which the disk copy is written anew.
	maxJournal = 1 << 20
	// maxDelta is how many records a line may hold; more are not worth one.
	maxDelta = 64
)

// encodeDelta returns a line of the journal, and its checksum. before is that of
// the line before it.
func encodeDelta(before string, d *delta) (line []byte, checksum string, err error) {
	b, err := json.Marshal(d)
	if err != nil {
		return nil, "", fmt.Errorf("encode a change of the state: %w", err)
	}
	checksum = sum(append([]byte(before), b...))
	return bytes.Join([][]byte{[]byte(checksum), []byte(" "), b, []byte("\n")}, nil), checksum, nil
}

// replay applies to m, the content of the disk copy with the checksum base, what
// the journal b holds, and returns how many lines that were. A journal of another
// disk copy holds nothing. A last line that was cut off counts for nothing;
// damage before it is an error.
func replay(b []byte, base string, m *Memory) (lines int, err error) {
	if len(b) > MaxState {
		return 0, fmt.Errorf("a journal of %d bytes; at most %d are read", len(b), MaxState)
	}
	before, b, _ := cutLine(b)
	if before != base {
		return 0, nil
	}
	for len(b) > 0 {
		line, rest, whole := cutLine(b)
		checksum, body, _ := strings.Cut(line, " ")
		fits := whole && checksum == sum([]byte(before+body))
		var d delta
		if fits && json.Unmarshal([]byte(body), &d) == nil {
			d.apply(m)
			before, b = checksum, rest
			lines++
			continue
		}
		if len(rest) == 0 {
			return lines, nil
		}
		return lines, fmt.Errorf("line %d of the journal does not match its checksum: it was damaged or edited", lines+1)
	}
	return lines, nil
}

func cutLine(b []byte) (line string, rest []byte, whole bool) {
	first, rest, whole := bytes.Cut(b, []byte("\n"))
	return string(first), rest, whole
}

// readJournal returns what the journal holds, nothing if there is none.
func (s *Store) readJournal() ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, journalName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the journal of the disk copy: %w", err)
	}
	return b, nil
}

// append writes d behind what the disk holds, durably.
func (s *Store) append(d *delta) error {
	line, checksum, err := encodeDelta(s.sum, d)
	if err != nil {
		return err
	}
	begin := s.journal == nil
	if begin {
		line = append([]byte(s.sum+"\n"), line...)
		// What is in it belongs to an older disk copy.
		path := filepath.Join(s.dir, journalName)
		if s.journal, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			return err
		}
	}
	_, err = s.journal.Write(line)
	if err = errors.Join(err, s.journal.Sync()); err == nil && begin {
		err = s.syncDir()
	}
	if err != nil {
		return err
	}
	s.sum, s.journaled = checksum, s.journaled+len(line)
	return nil
}

// inPlace tells whether the journal is still where a restart would look for it.
func (s *Store) inPlace() bool {
	if s.journal == nil {
		return true
	}
	open, err := s.journal.Stat()
	there, err2 := os.Stat(filepath.Join(s.dir, journalName))
	return err == nil && err2 == nil && os.SameFile(open, there)
}

// endJournal makes the next Save write the disk copy anew.
func (s *Store) endJournal() error {
	s.sum, s.journaled = "", 0
	if s.journal == nil {
		return nil
	}
	err := s.journal.Close()
	s.journal = nil
	return err
}
