// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"encoding/base64"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nkeys"
)

// Files of a user, in a folder of its own.
const (
	clientCertFile = "client.crt"
	clientKeyFile  = "client.key"
	seedFile       = "client.nk"
	serversFile    = "servers" // URLs, one a line
)

// SecretName is the name of the Secret that deploy/base mounts.
const SecretName = "cluster-agent-nats"

// ServerDir is the folder of a server, below the directory.
func (i Installation) ServerDir(name string) string {
	if len(i.Servers) == 1 {
		return "nats"
	}
	return filepath.Join("nats", name)
}

// UserDir is the folder of a user, below the directory.
func (u User) UserDir() string {
	switch u.Role {
	case RoleCluster:
		return filepath.Join("clusters", u.Name)
	case RoleGateway:
		return filepath.Join("gateways", u.Name)
	}
	return u.Name
}

// makeAuthorities makes the authority of clients and servers, and that of routes
// once there are any.
func (d *Dir) makeAuthorities(i Installation) error {
	names := []string{"ca"}
	if len(i.Servers) > 1 {
		names = append(names, "route-ca")
	}
	for _, name := range names {
		if d.has("ca", name+".crt") {
			continue
		}
		cert, key, err := newAuthority("egress-gateway NATS "+name, d.now())
		if err != nil {
			return err
		}
		if err := d.write(key, "ca", name+".key"); err != nil {
			return err
		}
		if err := d.write(cert, "ca", name+".crt"); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) authority(name string) (authority, error) {
	return readAuthority(d.file("ca", name+".crt"), d.file("ca", name+".key"))
}

// makeUser makes a user's secrets and returns its public key. A seed that is
// there was made by a run that did not come to its end.
func (d *Dir) makeUser(u User) (string, error) {
	key, err := d.publicKey(u)
	if err != nil {
		if key, err = d.newSeed(u); err != nil {
			return "", err
		}
	}
	return key, d.issueClient(u)
}

func (d *Dir) issueClient(u User) error {
	ca, err := d.authority("ca")
	if err != nil {
		return err
	}
	cert, key, err := ca.issue(u.Name, nil, forClient, d.now())
	if err != nil {
		return err
	}
	return d.writePair(cert, key, u.UserDir(), clientCertFile, clientKeyFile)
}

// writePair writes a certificate and its key.
func (d *Dir) writePair(cert, key []byte, dir, certFile, keyFile string) error {
	if err := d.write(key, dir, keyFile); err != nil {
		return err
	}
	return d.write(cert, dir, certFile)
}

// newSeed writes a new seed and returns its public key.
func (d *Dir) newSeed(u User) (string, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return "", fmt.Errorf("make nkey of %s: %w", u.Name, err)
	}
	defer pair.Wipe()
	seed, err := pair.Seed()
	if err != nil {
		return "", fmt.Errorf("make nkey of %s: %w", u.Name, err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return "", fmt.Errorf("make nkey of %s: %w", u.Name, err)
	}
	return public, d.write(append(seed, '\n'), u.UserDir(), seedFile)
}

// publicKey returns the public key of the seed that lies in a user's folder.
func (d *Dir) publicKey(u User) (string, error) {
	b, err := os.ReadFile(d.file(u.UserDir(), seedFile))
	if err != nil {
		return "", err
	}
	pair, err := nkeys.ParseDecoratedNKey(b)
	if err != nil {
		return "", fmt.Errorf("%s: %w", d.file(u.UserDir(), seedFile), err)
	}
	defer pair.Wipe()
	return pair.PublicKey()
}

// deriveServer writes a server's folder.
func (d *Dir) deriveServer(s Server) error {
	dir := d.inst.ServerDir(s.Name)
	conf, err := d.inst.Conf(s.Name)
	if err != nil {
		return err
	}
	if err := d.write([]byte(conf), dir, confFile); err != nil {
		return err
	}
	if err := d.serverCertificate(s, "ca", forServer, caFile, serverCertFile, serverKeyFile); err != nil {
		return err
	}
	if len(d.inst.Servers) == 1 {
		return nil
	}
	return d.serverCertificate(s, "route-ca", forRoute, routeCAFile, routeCertFile, routeKeyFile)
}

// serverCertificate makes one of a server's certificates unless there is one for
// its hosts. Each is good for the machine itself as well.
func (d *Dir) serverCertificate(s Server, ca string, use usage, caFile, certFile, keyFile string) error {
	dir := d.inst.ServerDir(s.Name)
	caPEM, err := os.ReadFile(d.file("ca", ca+".crt"))
	if err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	if err := d.write(caPEM, dir, caFile); err != nil {
		return err
	}
	hosts := s.certificateHosts()
	if have, err := readCertificate(d.file(dir, certFile)); err == nil && hasHosts(have, hosts) && d.has(dir, keyFile) {
		return nil
	}
	return d.issueServer(s, ca, use, certFile, keyFile)
}

func (d *Dir) issueServer(s Server, ca string, use usage, certFile, keyFile string) error {
	signer, err := d.authority(ca)
	if err != nil {
		return err
	}
	cert, key, err := signer.issue(s.Name, s.certificateHosts(), use, d.now())
	if err != nil {
		return err
	}
	return d.writePair(cert, key, d.inst.ServerDir(s.Name), certFile, keyFile)
}

func (s Server) certificateHosts() []string {
	hosts := slices.Clone(s.Hosts)
	for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
		if !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// deriveUser writes what a user's folder holds beside its secrets. A folder
// that was moved away stays away.
func (d *Dir) deriveUser(u User) error {
	dir := u.UserDir()
	if !d.has(dir) {
		return nil
	}
	ca, err := os.ReadFile(d.file("ca", "ca.crt"))
	if err != nil {
		return fmt.Errorf("read authority: %w", err)
	}
	if err := d.write(ca, dir, caFile); err != nil {
		return err
	}
	if err := d.write([]byte(strings.Join(d.inst.URLs(), "\n")+"\n"), dir, serversFile); err != nil {
		return err
	}
	switch u.Role {
	case RoleGateway:
		return d.write(d.environment("GATEWAY", u), dir, "gateway.env")
	case RoleCluster:
		if err := d.write(d.environment("CLUSTER", u), dir, "cluster-agent.env"); err != nil {
			return err
		}
		return d.writeSecret(u)
	}
	return nil
}

// environment is a file for docker run --env-file and for compose. What differs
// from machine to machine does not stand in it.
func (d *Dir) environment(prefix string, u User) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# Made by egressctl init; changes here are lost. Settings of the machine belong into another file.\n")
	fmt.Fprintf(&b, "%s_NAME=%s\n", prefix, u.Name)
	fmt.Fprintf(&b, "%s_NATS_URL=%s\n", prefix, strings.Join(d.inst.URLs(), ","))
	for _, f := range [][2]string{{"CA_FILE", caFile}, {"CERT_FILE", clientCertFile}, {"KEY_FILE", clientKeyFile}, {"NKEY_FILE", seedFile}} {
		fmt.Fprintf(&b, "%s_NATS_%s=%s\n", prefix, f[0], path.Join(d.inst.CredentialsDir, f[1]))
	}
	return []byte(b.String())
}

// writeSecret writes the Secret of a cluster-agent, if its parts are here.
func (d *Dir) writeSecret(u User) error {
	var b strings.Builder
	fmt.Fprintf(&b, `# Made by egressctl init for cluster %s. It holds keys: do not commit it.
apiVersion: v1
kind: Secret
metadata:
  name: %s
  namespace: egress-gateway
type: Opaque
data:
`, u.Name, SecretName)
	for _, name := range []string{caFile, clientCertFile, clientKeyFile, seedFile} {
		content, err := os.ReadFile(d.file(u.UserDir(), name))
		if os.IsNotExist(err) {
			return nil // moved away
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "  %s: %s\n", name, base64.StdEncoding.EncodeToString(content))
	}
	fmt.Fprintf(&b, "stringData:\n  url: %q\n", strings.Join(d.inst.URLs(), ","))
	return d.write([]byte(b.String()), u.UserDir(), "secret.yaml")
}
