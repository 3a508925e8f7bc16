// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"egress-gateway.io/gateway-agent/internal/plan"
)

// The files in the state directory.
const (
	stateName   = "state.json"
	confirmName = "confirm-removals.json"
	lockName    = "lock"
)

// ErrRunning says that another gateway-agent holds the state directory.
var ErrRunning = errors.New("a gateway-agent is running on this state directory")

// Store is the disk copy of a Memory, in a directory that belongs to one
// gateway-agent. It is not safe for concurrent use.
type Store struct {
	dir string
	// sum is the checksum that the next line of the journal goes on from; empty
	// if the disk copy has to be written anew first.
	sum       string
	journal   *os.File
	journaled int // its size
}

// OpenStore returns the store in dir, which it creates if need be.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Lock takes the directory for this process, until unlock is called or the
// process ends. It returns ErrRunning at once if another process has it.
func (s *Store) Lock() (unlock func() error, err error) {
	f, err := s.openLock()
	if err != nil {
		return nil, err
	}
	// A lock of the open file, not of the process (fcntl(2)): it is held until
	// f is closed, and it can be asked for without being taken.
	switch err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); {
	case err == nil:
		return f.Close, nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return nil, errors.Join(ErrRunning, f.Close())
	default:
		return nil, errors.Join(fmt.Errorf("lock the state directory: %w", err), f.Close())
	}
}

// Locked tells whether a process has the directory, without taking it.
func (s *Store) Locked() (bool, error) {
	f, err := s.openLock()
	if err != nil {
		return false, err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, errors.Join(fmt.Errorf("look at the lock of the state directory: %w", err), f.Close())
	}
	return lock.Type != unix.F_UNLCK, f.Close()
}

func (s *Store) openLock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	return f, nil
}

// Loaded is what Load found.
type Loaded struct {
	Memory Memory
	// Found says that there is a disk copy that could be read.
	Found bool
	// Problems name single records that had to be left out.
	Problems []plan.Problem
	// Corrupt says why the copy could not be used, and Aside where it was put.
	Corrupt error
	Aside   string
}

// Load reads the disk copy without touching it. A missing or a corrupt one is
// no error of Load.
func (s *Store) Load() (Loaded, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, stateName))
	empty := Memory{Clusters: map[string]Cluster{}}
	if errors.Is(err, fs.ErrNotExist) {
		return Loaded{Memory: empty}, nil
	}
	if err != nil {
		return Loaded{}, fmt.Errorf("read the disk copy: %w", err)
	}
	journal, err := s.readJournal()
	if err != nil {
		return Loaded{}, err
	}
	m, problems, checksum, err := decodeAll(b, journal)
	if err != nil {
		return Loaded{Memory: empty, Corrupt: err}, nil
	}
	s.sum = checksum
	if len(problems) > 0 {
		s.sum = ""
	}
	return Loaded{Memory: m, Found: true, Problems: problems}, nil
}

// SetAside loads, and moves a corrupt disk copy out of the way, so that it can
// be looked at and the next Save does not overwrite it.
func (s *Store) SetAside(now time.Time) (Loaded, error) {
	l, err := s.Load()
	if err != nil || l.Corrupt == nil {
		return l, err
	}
	l.Aside = filepath.Join(s.dir, stateName+".corrupt-"+now.UTC().Format("20060102T150405.000Z"))
	if err := os.Rename(filepath.Join(s.dir, stateName), l.Aside); err != nil {
		return l, fmt.Errorf("set the corrupt disk copy aside: %w", err)
	}
	return l, nil
}

// Save makes the disk hold, durably, what d makes of m, which stays as it is; a
// nil d makes nothing of it. Unless the last Save failed, m is what the disk
// holds. It reports whether it wrote.
func (s *Store) Save(m Memory, d *delta) (bool, error) {
	switch {
	case d == nil && s.sum != "":
		return false, nil
	case s.sum != "" && d.size() <= maxDelta && s.journaled <= maxJournal && s.inPlace():
		err := s.append(d)
		if err != nil {
			err = fmt.Errorf("write the journal of the disk copy: %w", errors.Join(err, s.endJournal()))
		}
		return true, err
	case d != nil:
		m = m.clone()
		d.apply(&m)
	}
	return true, s.rewrite(m)
}

func (s *Store) rewrite(m Memory) error {
	ended := s.endJournal()
	b, checksum, err := encodeState(m)
	if err != nil {
		return err
	}
	if err := errors.Join(ended, s.replace(stateName, b)); err != nil {
		return fmt.Errorf("write the disk copy: %w", err)
	}
	s.sum = checksum
	return nil
}

// Remove deletes the disk copy and a pending confirmation.
func (s *Store) Remove() error {
	errs := []error{s.endJournal()}
	for _, name := range []string{stateName, journalName, confirmName} {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.syncDir())...)
}

// confirmation is one held tenant that the operator lets go.
type confirmation struct {
	Ref
	UID string `json:"uid"`
}

// RequestConfirm leaves word for the daemon that the held tenants of m may go.
func (s *Store) RequestConfirm(m Memory) error {
	var list []confirmation
	for _, r := range m.HeldRefs() {
		e, _ := m.Entry(r)
		list = append(list, confirmation{r, e.Record.UID})
	}
	b, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode the confirmation: %w", err)
	}
	if err := s.replace(confirmName, append(b, '\n')); err != nil {
		return fmt.Errorf("leave the confirmation: %w", err)
	}
	return nil
}

// ConfirmPending tells, cheaply, whether there is a request.
func (s *Store) ConfirmPending() bool {
	_, err := os.Stat(filepath.Join(s.dir, confirmName))
	return err == nil
}

// Confirmed returns the tenants that RequestConfirm named, by their UID; nil if
// there is no request.
func (s *Store) Confirmed() (map[Ref]string, error) {
	b, err := os.ReadFile(filepath.Join(s.dir, confirmName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the confirmation: %w", err)
	}
	var list []confirmation
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read the confirmation %s: %w", confirmName, err)
	}
	out := make(map[Ref]string, len(list))
	for _, c := range list {
		out[c.Ref] = c.UID
	}
	return out, nil
}

// DropConfirmed deletes the request: it was carried out.
func (s *Store) DropConfirmed() error {
	if err := os.Remove(filepath.Join(s.dir, confirmName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop the confirmation: %w", err)
	}
	return nil
}

// replace writes a file so that after a crash either the old or the new content
// is there: the file is synced before, and the directory after, the rename.
func (s *Store) replace(name string, b []byte) error {
	// A fixed name: what a crash leaves behind is overwritten the next time.
	f, err := os.OpenFile(filepath.Join(s.dir, "."+name+".new"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(s.dir, name)); err != nil {
		return err
	}
	return s.syncDir()
}

func (s *Store) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
