// SPDX-License-Identifier: Apache-2.0

package natsconf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"egress-gateway.io/shared/bus"
)

// Credentials is a user's folder, wherever it lies now.
type Credentials struct {
	User   string // as it has to be called when connecting
	Config bus.Config
}

// ReadCredentials reads a user's folder.
func ReadCredentials(dir string) (Credentials, error) {
	cert, err := readCertificate(filepath.Join(dir, clientCertFile))
	if err != nil {
		return Credentials{}, fmt.Errorf("read credentials: %w", err)
	}
	urls, err := os.ReadFile(filepath.Join(dir, serversFile))
	if err != nil {
		return Credentials{}, fmt.Errorf("read credentials: %w", err)
	}
	c := Credentials{User: cert.Subject.CommonName, Config: bus.Config{
		URL:      strings.Fields(string(urls)),
		NkeyFile: filepath.Join(dir, seedFile),
		CAFile:   filepath.Join(dir, caFile),
		CertFile: filepath.Join(dir, clientCertFile), KeyFile: filepath.Join(dir, clientKeyFile),
	}}
	if err := c.Config.Validate("credentials " + dir + ": NATS"); err != nil {
		return Credentials{}, err
	}
	return c, nil
}
