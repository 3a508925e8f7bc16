// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

// How long certificates are valid. An expired one ends no connection and no
// traffic, but nobody with it connects again.
const (
	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 2 * 365 * 24 * time.Hour
	clockSkew       = time.Hour // between this machine and the others
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// usage is what a certificate is good for.
type usage int

const (
	forClient usage = iota
	forServer
	forRoute // a server towards servers is both
)

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// newAuthority returns the PEM of a self-signed certificate and of its key.
func newAuthority(name string, now time.Time) (certPEM, keyPEM []byte, err error) {
	return authority{}.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-clockSkew), NotAfter: now.Add(authorityLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	})
}

// issue returns the PEM of a new certificate and of its key.
func (a authority) issue(name string, hosts []string, use usage, now time.Time) (certPEM, keyPEM []byte, err error) {
	end := now.Add(certificateLife)
	if a.cert.NotAfter.Before(end) {
		end = a.cert.NotAfter
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: map[usage][]x509.ExtKeyUsage{
			forClient: {x509.ExtKeyUsageClientAuth},
			forServer: {x509.ExtKeyUsageServerAuth},
			forRoute:  {x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}[use],
	}
	template.DNSNames, template.IPAddresses = subjects(hosts)
	return a.sign(template)
}

// sign makes a key and a certificate for it, with a serial number of its own.
// The zero authority lets it sign itself.
func (a authority) sign(template *x509.Certificate) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("make serial number: %w", err)
	}
	if a.cert == nil {
		a = authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate of %s: %w", template.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

func subjects(hosts []string) (names []string, addrs []net.IP) {
	for _, h := range hosts {
		if addr, err := netip.ParseAddr(h); err == nil {
			addrs = append(addrs, addr.AsSlice())
		} else {
			names = append(names, h)
		}
	}
	return names, addrs
}

// hasHosts says whether a certificate is for exactly these names and addresses.
func hasHosts(c *x509.Certificate, hosts []string) bool {
	names, addrs := subjects(hosts)
	return slices.Equal(names, c.DNSNames) &&
		slices.EqualFunc(addrs, c.IPAddresses, func(a, b net.IP) bool { return a.Equal(b) })
}

func readCertificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func readAuthority(certPath, keyPath string) (authority, error) {
	cert, err := readCertificate(certPath)
	if err != nil {
		return authority{}, fmt.Errorf("read authority: %w", err)
	}
	b, err := os.ReadFile(keyPath)
	if err != nil {
		return authority{}, fmt.Errorf("read the authority's key, which is needed to make certificates: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return authority{}, fmt.Errorf("%s holds no key", keyPath)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return authority{}, fmt.Errorf("%s: %w", keyPath, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(cert.PublicKey) {
		return authority{}, errors.New(keyPath + " is not the key of " + certPath)
	}
	return authority{cert, ec}, nil
}
