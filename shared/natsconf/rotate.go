// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// renewBefore is how much of its life a certificate has left when Renew makes a
// new one.
const renewBefore = certificateLife / 3

// Rotate gives a user a new key and a new certificate. Its old key stays valid
// until Retire.
func (d *Dir) Rotate(name string) ([]string, error) {
	n, err := d.userIndex(name)
	if err != nil {
		return nil, err
	}
	u := d.inst.Users[n]
	if len(u.Keys) > 1 {
		return nil, fmt.Errorf("%s has two keys already: once it uses the new one, retire the old one", name)
	}
	return d.change(func() error {
		// A seed that is not known was made by a run that did not come to its end.
		key, err := d.publicKey(u)
		if err != nil || slices.Contains(u.Keys, key) {
			if key, err = d.newSeed(u); err != nil {
				return err
			}
		}
		if err := d.issueClient(u); err != nil {
			return err
		}
		d.setUsers(n, func(u *User) { u.Keys = append(slices.Clone(u.Keys), key) })
		return d.derive()
	})
}

// Retire makes all keys of a user but the newest invalid.
func (d *Dir) Retire(name string) ([]string, error) {
	n, err := d.userIndex(name)
	if err != nil {
		return nil, err
	}
	return d.change(func() error {
		d.setUsers(n, func(u *User) { u.Keys = u.Keys[len(u.Keys)-1:] })
		return d.derive()
	})
}

// Remove makes all keys of a cluster-agent or a gateway invalid, and removes
// its folder.
func (d *Dir) Remove(name string) ([]string, error) {
	n, err := d.userIndex(name)
	if err != nil {
		return nil, err
	}
	u := d.inst.Users[n]
	if u.Role != RoleCluster && u.Role != RoleGateway {
		return nil, fmt.Errorf("%s is needed; its key can be rotated", name)
	}
	return d.change(func() error {
		// The folder first: a seed that is left would be taken up by a user of
		// this name who comes later.
		if err := os.RemoveAll(d.file(u.UserDir())); err != nil {
			return err
		}
		d.inst.Users = slices.Delete(slices.Clone(d.inst.Users), n, n+1)
		d.changed = append(d.changed, u.UserDir())
		return d.derive()
	})
}

// setUsers changes a user in a copy of the list.
func (d *Dir) setUsers(n int, set func(*User)) {
	d.inst.Users = slices.Clone(d.inst.Users)
	set(&d.inst.Users[n])
}

func (d *Dir) userIndex(name string) (int, error) {
	n := slices.IndexFunc(d.inst.Users, func(u User) bool { return u.Name == name })
	if n < 0 {
		var names []string
		for _, u := range d.inst.Users {
			names = append(names, u.Name)
		}
		return 0, fmt.Errorf("there is no user %q; there are %v", name, names)
	}
	return n, nil
}

// Certificate is one of the directory.
type Certificate struct {
	Path     string // below the directory
	Name     string
	NotAfter time.Time
	renew    func() error // nil for authorities
}

// Certificates returns all certificates that lie in the directory.
func (d *Dir) Certificates() ([]Certificate, error) {
	var out []Certificate
	add := func(renew func() error, parts ...string) error {
		c, err := readCertificate(d.file(parts...))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		out = append(out, Certificate{Path: filepath.Join(parts...), Name: c.Subject.CommonName, NotAfter: c.NotAfter, renew: renew})
		return nil
	}
	errs := []error{add(nil, "ca", "ca.crt"), add(nil, "ca", "route-ca.crt")}
	for _, s := range d.inst.Servers {
		dir := d.inst.ServerDir(s.Name)
		errs = append(errs,
			add(func() error { return d.issueServer(s, "ca", forServer, serverCertFile, serverKeyFile) }, dir, serverCertFile),
			add(func() error { return d.issueServer(s, "route-ca", forRoute, routeCertFile, routeKeyFile) }, dir, routeCertFile))
	}
	for _, u := range d.inst.Users {
		errs = append(errs, add(func() error { return d.issueClient(u) }, u.UserDir(), clientCertFile))
	}
	return out, errors.Join(errs...)
}

// Renew makes new certificates in place of those that have less than a third of
// their life left. The old ones stay valid until their end.
func (d *Dir) Renew() ([]string, error) {
	list, err := d.Certificates()
	if err != nil {
		return nil, err
	}
	return d.change(func() error {
		for _, c := range list {
			if c.renew == nil || c.NotAfter.Sub(d.now()) >= renewBefore {
				continue
			}
			if err := c.renew(); err != nil {
				return err
			}
		}
		return d.derive()
	})
}
