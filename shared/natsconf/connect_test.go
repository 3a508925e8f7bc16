// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Nobody gets in who lacks any one of TLS, the right authority, a certificate of
// ours that is valid, and a known key.
func TestWhoGetsIn(t *testing.T) {
	t.Parallel()
	n := serveWithout(t, time.Now)
	stranger := aDir(t) // another installation
	expired := expiredClient(t, n.d)
	gw1, err := ReadCredentials(n.d.file("gateways", "gw1"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := gw1.Config
	key, err := nats.NkeyOptionFromSeed(cfg.NkeyFile)
	if err != nil {
		t.Fatal(err)
	}
	unknown := must(nkeys.CreateUser())
	ca, cert := nats.RootCAs(cfg.CAFile), nats.ClientCert(cfg.CertFile, cfg.KeyFile)
	for name, c := range map[string]struct {
		url  string
		opts []nats.Option
		want string // empty: gets in
	}{
		"all of it":                      {cfg.URL[0], []nats.Option{ca, cert, key}, ""},
		"a server of another authority":  {cfg.URL[0], []nats.Option{nats.RootCAs(stranger.file("ca", "ca.crt")), cert, key}, "unknown authority"},
		"no certificate":                 {cfg.URL[0], []nats.Option{ca, key}, "tls"},
		"a certificate of another CA":    {cfg.URL[0], []nats.Option{ca, nats.ClientCert(stranger.file("gateways/gw1", clientCertFile), stranger.file("gateways/gw1", clientKeyFile)), key}, "tls"},
		"a certificate that has expired": {cfg.URL[0], []nats.Option{ca, nats.ClientCert(expired[0], expired[1]), key}, "tls"},
		"the server's certificate":       {cfg.URL[0], []nats.Option{ca, nats.ClientCert(n.d.file("nats", serverCertFile), n.d.file("nats", serverKeyFile)), key}, "tls"},
		"no key":                         {cfg.URL[0], []nats.Option{ca, cert}, "Authorization Violation"},
		"an unknown key":                 {cfg.URL[0], []nats.Option{ca, cert, nats.Nkey(must(unknown.PublicKey()), unknown.Sign)}, "Authorization Violation"},
		"a known key, another's seed":    {cfg.URL[0], []nats.Option{ca, cert, nats.Nkey(n.d.inst.Users[2].Keys[0], unknown.Sign)}, "Authorization Violation"},
		"a user and a password":          {cfg.URL[0], []nats.Option{ca, cert, nats.UserInfo("gw1", "gw1")}, "Authorization Violation"},
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := nats.Connect(c.url, c.opts...)
			if err == nil {
				// With TLS 1.3 a client learns that its certificate was refused when it reads.
				err = nc.Flush()
				if last := nc.LastError(); last != nil {
					err = last
				}
				nc.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// Whoever speaks without TLS is not answered.
func TestNoPlaintext(t *testing.T) {
	t.Parallel()
	n := serveWithout(t, time.Now)
	c, err := net.Dial("tcp", n.address())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("CONNECT {\"verbose\":false}\r\nPING\r\n")); err != nil {
		t.Fatal(err)
	}
	heard, _ := io.ReadAll(c) // until the server hangs up
	if strings.Contains(string(heard), "PONG") || !strings.Contains(string(heard), `"tls_required":true`) {
		t.Errorf("heard %q", heard)
	}
}

// expiredClient returns the files of a certificate for gw1 that was good until
// an hour ago.
func expiredClient(t *testing.T, d *Dir) [2]string {
	t.Helper()
	ca, err := d.authority("ca")
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.issue("gw1", nil, forClient, time.Now().Add(-certificateLife-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	out := [2]string{dir + "/cert", dir + "/key"}
	for i, b := range [][]byte{cert, key} {
		if err := os.WriteFile(out[i], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// servedUntil returns when the certificate that the server shows expires.
func servedUntil(t *testing.T, n *natsServer) time.Time {
	t.Helper()
	c := n.client("gateways/gw1")
	state, err := c.TLSConnectionState()
	if err != nil {
		t.Fatal(err)
	}
	return state.PeerCertificates[0].NotAfter
}
