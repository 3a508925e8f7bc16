// SPDX-License-Identifier: Apache-2.0

package natsserver

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// maxConfigFile bounds what is read of each file to notice a change.
const maxConfigFile = 1 << 20

// load reads the configuration file and makes it that of an embedded server.
func (s *Server) load() (*server.Options, error) {
	opts, err := server.ProcessConfigFile(s.opts.ConfigFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; `egressctl init` writes it with the certificates and keys beside it", s.opts.ConfigFile, err)
	}
	if err := secure(opts); err != nil {
		return nil, fmt.Errorf("%s: %w; `egressctl init` writes a right one", s.opts.ConfigFile, err)
	}
	if err := s.addLocal(opts); err != nil {
		return nil, fmt.Errorf("%s: %w", s.opts.ConfigFile, err)
	}
	if s.opts.Listen != "" {
		host, port, err := net.SplitHostPort(s.opts.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", s.opts.Listen, err)
		}
		if opts.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("listen on %q: %w", s.opts.Listen, err)
		}
		opts.Host = host
	}
	if err := os.MkdirAll(s.opts.StoreDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store: %w; it must be a directory that this process may write to", err)
	}
	opts.StoreDir = s.opts.StoreDir
	opts.SyncAlways = true // there is no other copy
	// What belongs to a process of its own.
	opts.NoSigs, opts.PidFile, opts.PortsFileDir = true, "", ""
	opts.NoLog, opts.LogFile, opts.Syslog, opts.RemoteSyslog = false, "", false, ""
	return opts, nil
}

// secure refuses a configuration that would let in somebody who is not known, or
// that is not one of a lone server.
func secure(opts *server.Options) error {
	switch {
	case opts.TLSConfig == nil || opts.TLSConfig.ClientAuth != tls.RequireAndVerifyClientCert:
		return errors.New("an embedded server wants TLS with certificates of both sides (tls { verify: true })")
	case opts.AllowNonTLS || opts.NoAuthUser != "":
		return errors.New("allow_non_tls and no_auth_user would let in anybody")
	case len(opts.Nkeys) == 0 && len(opts.TrustedOperators) == 0:
		return errors.New("there is no user with an nkey")
	case !opts.JetStream:
		return errors.New("jetstream is not enabled")
	case opts.Cluster.Port != 0 || opts.Cluster.Name != "" || len(opts.Routes) > 0:
		return errors.New("an embedded server is alone; the servers of a cluster run by themselves, see docs/nats-cluster.md")
	}
	return nil
}

// addLocal adds the user of this process to the account that has the streams.
func (s *Server) addLocal(opts *server.Options) error {
	u := s.opts.Local
	if len(u.Publish) == 0 {
		return nil
	}
	for _, known := range opts.Nkeys {
		if known.Account != nil && known.Account.Name != server.DEFAULT_SYSTEM_ACCOUNT && known.Account.Name != opts.SystemAccount {
			opts.Nkeys = append(opts.Nkeys, &server.NkeyUser{Nkey: s.public, Account: known.Account, Permissions: &server.Permissions{
				Publish:   &server.SubjectPermission{Allow: u.Publish},
				Subscribe: &server.SubjectPermission{Allow: []string{u.Inbox + ".>"}},
			}})
			return nil
		}
	}
	return errors.New("no account has a user; `egressctl init` writes one with all that is needed")
}

// warning says what is wrong though the server runs.
func (s *Server) warning(opts *server.Options) error {
	for _, c := range opts.TLSConfig.Certificates {
		leaf := c.Leaf
		if leaf == nil && len(c.Certificate) > 0 {
			leaf, _ = x509.ParseCertificate(c.Certificate[0]) // it was loaded
		}
		if leaf == nil {
			continue
		}
		if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
			return fmt.Errorf("the certificate of the embedded NATS server beside %s is valid from %s to %s, not now: nobody outside can connect; look at the clock, or issue a new one with egressctl",
				s.opts.ConfigFile, leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
		}
	}
	if left := setAsideDirs(s.opts.StoreDir); len(left) > 0 {
		return fmt.Errorf("streams of the embedded NATS server could not be read and were put aside; they began anew, empty: look at %v, and remove it", left)
	}
	return nil
}

// explain adds the remedy to what ended a start.
func (s *Server) explain(err error, opts *server.Options) error {
	var busy bool
	addr := net.JoinHostPort(opts.Host, strconv.Itoa(opts.Port))
	if l, failed := net.Listen("tcp", addr); failed != nil {
		busy = true
	} else {
		_ = l.Close()
	}
	if busy {
		return fmt.Errorf("%w; another program has the address %s, perhaps a nats-server: end it, or choose another address", err, addr)
	}
	return fmt.Errorf("%w; look at the store below %s: is it a directory that this process may write to, is there room?", err, opts.StoreDir)
}

// fingerprint changes when the configuration file or a file beside it does.
func fingerprint(file string) string {
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return err.Error()
	}
	h := sha256.New()
	for _, e := range entries {
		fmt.Fprintf(h, "%q", e.Name())
		// Not by its type: a mounted Secret consists of links.
		f, err := os.Open(filepath.Join(filepath.Dir(file), e.Name()))
		if err != nil {
			continue
		}
		_, _ = io.Copy(h, io.LimitReader(f, maxConfigFile)) // a directory has no content
		_ = f.Close()
	}
	return hex.EncodeToString(h.Sum(nil))
}
