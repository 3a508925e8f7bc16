// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The tokens of the API server's users. They guard nothing: the server listens
// in a namespace of the lab only.
const (
	adminToken = "lab-admin"
	agentToken = "lab-cluster-agent"
)

// writeKeys makes what the API server needs to identify itself and others: a
// serving certificate that is its own authority, the key that signs service
// account tokens, and the users' tokens. It returns the certificate as PEM.
func (l *Lab) writeKeys() ([]byte, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab " + l.opts.Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP(Control), net.ParseIP("127.0.0.1")}, DNSNames: []string{"kubernetes"},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make serving certificate: %w", err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	_, accountPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	agent := l.opts.ClusterAgentUser
	groups := `"system:serviceaccounts,system:authenticated"`
	if agent == "" {
		agent, groups = "cluster-agent", "system:masters"
	}
	files := map[string][]byte{
		"apiserver.key": keyPEM, "apiserver.crt": cert, "accounts.key": accountPEM,
		"tokens.csv": fmt.Appendf(nil, "%s,admin,admin,system:masters\n%s,%s,%s,%s\n", adminToken, agentToken, agent, agent, groups),
	}
	for name, content := range files {
		if err := os.WriteFile(l.path("kube", name), content, 0o600); err != nil {
			return nil, fmt.Errorf("write keys: %w", err)
		}
	}
	return cert, nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// writeKubeconfig writes a kubeconfig for one token, of use inside the control
// namespace.
func (l *Lab) writeKubeconfig(path, token string, authority []byte) error {
	c := clientcmdapi.NewConfig()
	c.Clusters["lab"] = &clientcmdapi.Cluster{Server: apiURL, CertificateAuthorityData: authority}
	c.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "user"}
	c.CurrentContext = "lab"
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
