// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// stateFile holds the Installation.
const stateFile = "installation.json"

// Dir is the directory of an installation:
//
//	installation.json             the Installation; everything else follows from it
//	ca/                           the authorities and their keys: to be kept offline
//	nats/                         of a lone server: nats.conf, ca.crt, server.crt, server.key
//	nats/<server>/                the same for each of several, with route.crt, route.key and route-ca.crt
//	gateways/<name>/              ca.crt, client.crt, client.key, client.nk, servers; gateway.env
//	clusters/<name>/              the same five; cluster-agent.env, secret.yaml
//	auditor/, setup/              the same five
//
// All files have mode 0600. Secrets are made once, with their user, and are not
// made again when they are missing: what was moved away stays away.
//
// The methods that change something return what they made or changed, as paths
// below the directory, sorted; none means that nothing had to be done. They may
// be interrupted at any point and be run again. Two at once are not allowed.
type Dir struct {
	path    string
	now     func() time.Time
	inst    Installation
	changed []string
}

// Spec is what Init is asked for. Empty fields ask for nothing.
type Spec struct {
	Clusters []string
	Gateways []string
	// Servers replaces the servers, if there are any.
	Servers []Server
	// Base gives the ports and paths of a new installation; zero means defaults.
	Base Installation
}

// ErrNoInstallation says that a directory holds none.
var ErrNoInstallation = errors.New("there is no installation here; `egressctl init --dir` makes one")

// Open reads the installation of a directory. It returns ErrNoInstallation,
// wrapped, with a Dir that Init can be called on if there is none.
func Open(path string, now func() time.Time) (*Dir, error) {
	d := &Dir{path: path, now: now}
	b, err := os.ReadFile(d.file(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return d, fmt.Errorf("%s: %w", path, ErrNoInstallation)
	}
	if err != nil {
		return nil, fmt.Errorf("read installation: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d.inst); err != nil {
		return nil, fmt.Errorf("read installation: %s: %w", d.file(stateFile), err)
	}
	if err := d.inst.Validate(); err != nil {
		return nil, fmt.Errorf("read installation: %s: %w", d.file(stateFile), err)
	}
	return d, nil
}

// Installation returns the model.
func (d *Dir) Installation() Installation { return d.inst }

// Init makes the installation, or adds to it what spec has and it has not.
func (d *Dir) Init(spec Spec) ([]string, error) {
	next := d.inst
	if next.Version == 0 {
		next = spec.Base
		next.Users, next.Servers = nil, nil
		if len(spec.Clusters) == 0 || len(spec.Servers) == 0 {
			return nil, errors.New("a new installation needs the name of a cluster and the host of a NATS server")
		}
	}
	next = next.withDefaults()
	if len(spec.Servers) > 0 {
		next.Servers = spec.Servers
	}
	wanted := []User{{Name: string(RoleSetup), Role: RoleSetup}, {Name: string(RoleAuditor), Role: RoleAuditor}}
	for _, c := range spec.Clusters {
		wanted = append(wanted, User{Name: c, Role: RoleCluster})
	}
	for _, g := range spec.Gateways {
		wanted = append(wanted, User{Name: g, Role: RoleGateway})
	}
	next.Users = slices.Clone(next.Users)
	var fresh []User
	for _, u := range wanted {
		have, known := next.User(u.Name)
		if known && have.Role == u.Role {
			continue
		}
		u.Keys = []string{placeholderKey}
		next.Users, fresh = append(next.Users, u), append(fresh, u)
	}
	if err := next.Validate(); err != nil {
		return nil, err
	}
	return d.change(func() error { return d.make(next, fresh) })
}

// placeholderKey stands for a key to be made, so that all else can be validated
// before anything is written.
const placeholderKey = "UAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABET7"

func (d *Dir) make(next Installation, fresh []User) error {
	if err := d.makeAuthorities(next); err != nil {
		return err
	}
	for _, u := range fresh {
		key, err := d.makeUser(u)
		if err != nil {
			return err
		}
		n := slices.IndexFunc(next.Users, func(v User) bool { return v.Name == u.Name })
		next.Users[n].Keys = []string{key}
	}
	d.inst = next
	return d.derive()
}

// change runs a change and returns the files that it wrote.
func (d *Dir) change(do func() error) ([]string, error) {
	d.changed = nil
	before := d.inst
	if err := do(); err != nil {
		d.inst = before
		return nil, err
	}
	slices.Sort(d.changed)
	return slices.Compact(d.changed), nil
}

// derive writes everything that follows from the installation and the secrets.
func (d *Dir) derive() error {
	b, err := json.MarshalIndent(d.inst, "", "  ")
	if err != nil {
		return fmt.Errorf("encode installation: %w", err)
	}
	if err := d.write(append(b, '\n'), stateFile); err != nil {
		return err
	}
	for _, s := range d.inst.Servers {
		if err := d.deriveServer(s); err != nil {
			return err
		}
	}
	for _, u := range d.inst.Users {
		if err := d.deriveUser(u); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) file(parts ...string) string {
	return filepath.Join(append([]string{d.path}, parts...)...)
}

// has says whether a file exists.
func (d *Dir) has(parts ...string) bool {
	_, err := os.Lstat(d.file(parts...))
	return err == nil
}

// write makes a file say content, at once or not at all, and notes if it had to.
func (d *Dir) write(content []byte, parts ...string) error {
	target := d.file(parts...)
	old, err := os.ReadFile(target)
	if err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(target), "."+filepath.Base(target)+"-") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), target)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", target, err), os.Remove(f.Name()))
	}
	d.changed = append(d.changed, filepath.Join(parts...))
	return nil
}
