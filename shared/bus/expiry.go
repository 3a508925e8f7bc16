// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"time"
)

// The certificates whose ends Expiries tells.
const (
	CertClient = "client"
	CertCA     = "ca"
	CertServer = "server"
)

// Expiries returns when the certificates of the connection end: the agent's own
// and the authorities', as the files hold them now, and that of the server that
// it is connected to. One that there is not, or that can not be read, is absent:
// the log of the next attempt to connect says why. Of several authorities the
// last to end counts, since a new one is added before the old one ends.
func (c *Conn) Expiries() map[string]time.Time {
	out := map[string]time.Time{}
	if certs := certificates(c.certFile); len(certs) > 0 {
		out[CertClient] = certs[0].NotAfter // the others are on the way to the root
	}
	for _, cert := range certificates(c.caFile) {
		out[CertCA] = later(out[CertCA], cert.NotAfter)
	}
	if state, err := c.nc.TLSConnectionState(); err == nil && len(state.PeerCertificates) > 0 {
		out[CertServer] = state.PeerCertificates[0].NotAfter
	}
	return out
}

// certificates reads those of a PEM file; none if it can not be read.
func certificates(file string) []*x509.Certificate {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return out
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			out = append(out, cert)
		}
	}
}
