// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A spool line is the CRC-32C of a JSON text in 8 hex digits, a space, the text,
// and a newline. JSON has no newline of its own.
const (
	lineHead      = 9
	segmentSuffix = ".spool"
)

// encodeLine makes a spool line of a JSON text.
func encodeLine(text []byte) []byte {
	line := make([]byte, 0, lineHead+len(text)+1)
	line = fmt.Appendf(line, "%08x ", crc32.Checksum(text, castagnoli()))
	line = append(line, text...)
	return append(line, '\n')
}

// decodeLine is the inverse, without the newline.
func decodeLine(line []byte) ([]byte, error) {
	if len(line) < lineHead || line[lineHead-1] != ' ' {
		return nil, errors.New("spool line without a checksum")
	}
	sum, err := strconv.ParseUint(string(line[:lineHead-1]), 16, 32)
	if err != nil {
		return nil, fmt.Errorf("spool line: %w", err)
	}
	text := line[lineHead:]
	if uint32(sum) != crc32.Checksum(text, castagnoli()) {
		return nil, errors.New("spool line with a wrong checksum")
	}
	return text, nil
}

// castagnoli returns a table that the library computes once.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// segment is a part of the spool that is dropped as a whole: a file, or memory.
type segment struct {
	path string
	file *os.File // nil: memory
	mem  []byte
	size int64 // bytes written
	n    int   // events written
	sent int   // events acknowledged, from the front
	read int64 // offset of the first event not yet handed out
	out  int   // events handed out, from the front
}

// openSegment creates a segment, in memory if dir is empty.
func openSegment(dir string, number uint64) (*segment, error) {
	if dir == "" {
		return &segment{}, nil
	}
	path := filepath.Join(dir, fmt.Sprintf("%016x%s", number, segmentSuffix))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &segment{path: path, file: f}, nil
}

// recoverSegment opens a segment of an earlier life. What follows the last whole
// line was being written when that life ended, and is cut off.
func recoverSegment(dir string, number uint64) (*segment, error) {
	s, err := openSegment(dir, number)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(s.file)
	if err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		s.size, s.n = int64(i+1), bytes.Count(b, []byte{'\n'})
	}
	if s.size == int64(len(b)) {
		return s, nil
	}
	if err := s.file.Truncate(s.size); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// segmentNumber parses a segment's file name.
func segmentNumber(name string) (uint64, bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(hex, 16, 64)
	return n, err == nil
}

// appendFile writes whole lines behind the others and syncs. It leaves the
// accounting to the caller.
func (s *segment) appendFile(lines []byte) error {
	_, err := s.file.Write(lines)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		// Half a line must not swallow the next one.
		return errors.Join(err, s.file.Truncate(s.size))
	}
	return nil
}

// next hands out up to max texts, up to about maxBytes of them. A line that is
// damaged is handed out as nil.
func (s *segment) next(max int, maxBytes int64) ([][]byte, error) {
	want := min(s.size-s.read, maxBytes)
	if want <= 0 || max <= 0 {
		return nil, nil
	}
	b := make([]byte, want)
	if s.file == nil {
		copy(b, s.mem[s.read:])
	} else if _, err := s.file.ReadAt(b, s.read); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if !bytes.Contains(b, []byte{'\n'}) && want < s.size-s.read {
		return s.next(max, s.size-s.read) // one line longer than maxBytes
	}
	var out [][]byte
	for len(out) < max {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			break
		}
		text, err := decodeLine(b[:i])
		if err != nil {
			text = nil
		}
		out = append(out, text)
		s.read += int64(i + 1)
		s.out++
		b = b[i+1:]
	}
	return out, nil
}

// rewind makes next begin again with the first event that is not acknowledged.
func (s *segment) rewind() error {
	s.read, s.out = 0, 0
	for s.out < s.sent {
		if _, err := s.next(s.sent-s.out, s.size); err != nil {
			return err
		}
	}
	return nil
}

// reset empties a segment.
func (s *segment) reset() error {
	if s.file != nil {
		if err := s.file.Truncate(0); err != nil {
			return err
		}
	}
	s.mem, s.size, s.n, s.sent, s.read, s.out = nil, 0, 0, 0, 0, 0
	return nil
}

// remove deletes a segment.
func (s *segment) remove() error {
	if s.file == nil {
		return nil
	}
	return errors.Join(s.file.Close(), os.Remove(s.path))
}

func (s *segment) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
