// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// selfSigned writes a certificate for 127.0.0.1 that is its own authority.
func selfSigned(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert", "CERTIFICATE", must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))),
		write("key", "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
}

func TestTLS(t *testing.T) {
	t.Parallel()
	cert, key := selfSigned(t)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(must(os.ReadFile(cert)))
	for name, first := range map[string]bool{"after the greeting": false, "first": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t, func(o *server.Options) {
				o.TLS, o.TLSVerify, o.TLSHandshakeFirst, o.TLSTimeout = true, true, first, 5
				o.TLSConfig = &tls.Config{
					Certificates: []tls.Certificate{must(tls.LoadX509KeyPair(cert, key))},
					ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12,
				}
			})
			cfg := srv.config()
			cfg.CAFile, cfg.CertFile, cfg.KeyFile, cfg.TLSFirst = cert, cert, key, first
			if err := cfg.Validate("P"); err != nil {
				t.Fatal(err)
			}
			c := must(Connect(t.Context(), cfg, "gw1", quiet()))
			t.Cleanup(func() { _ = c.Close() })
			eventually(t, "the connection", c.Connected)
			for _, which := range []string{CertClient, CertCA, CertServer} {
				if left := time.Until(c.Expiries()[which]); left < 50*time.Minute || left > time.Hour {
					t.Errorf("the %s certificate ends in %s, want an hour", which, left)
				}
			}
		})
	}
}
