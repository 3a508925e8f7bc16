// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
)

// Config says how to reach NATS and as whom. Make it a field named NATS of an
// envconfig struct: with the prefix GATEWAY its variables are GATEWAY_NATS_URL,
// GATEWAY_NATS_CREDS_FILE and so on.
//
// Secrets are never values of variables, but files. Files are read again at each
// connect, so that they can be rotated without a restart.
type Config struct {
	// URL lists servers: nats:// or tls://host:port, comma-separated.
	URL []string `default:"tls://127.0.0.1:4222" desc:"comma list of NATS servers: tls://host:port"`
	// CredsFile holds a JWT and its key (operator mode, hosted NATS).
	CredsFile string `split_words:"true" desc:"file with a JWT and its key; one of this, an nkey, or a user"`
	// NkeyFile holds an nkey seed.
	NkeyFile string `split_words:"true" desc:"file with an nkey seed"`
	// User and PasswordFile are for quick starts.
	User         string `desc:"user name, for quick starts"`
	PasswordFile string `split_words:"true" desc:"file with the user's password"`
	// CAFile verifies the server; CertFile and KeyFile are the client's own.
	CAFile   string `split_words:"true" desc:"file with the CA certificates that verify the servers"`
	CertFile string `split_words:"true" desc:"file with this agent's own certificate"`
	KeyFile  string `split_words:"true" desc:"file with the certificate's key"`
	// TLSFirst begins with TLS instead of NATS's plain greeting, as TLS
	// passthrough needs. The server must have handshake_first.
	TLSFirst bool `split_words:"true" desc:"true: begin with TLS, as servers with handshake_first want"`
	// AllowInsecurePlaintextForLab permits what Validate refuses otherwise: a
	// connection without TLS, or without anything that proves who we are.
	AllowInsecurePlaintextForLab bool `split_words:"true" desc:"true: connect without TLS or credentials; whoever reaches such a server decides where tenants' traffic goes"`
}

// Validate checks everything that needs no connection. Its messages name the
// variable, for which prefix is what stands before them ("GATEWAY_NATS"), the
// value and the remedy; never a secret. All errors are joined.
func (c Config) Validate(prefix string) error {
	var errs []error
	bad := func(field, value, remedy string) {
		errs = append(errs, fmt.Errorf("%s_%s=%q: %s", prefix, field, value, remedy))
	}
	if len(c.URL) == 0 {
		bad("URL", "", "give at least one server, such as tls://nats.example:4222")
	}
	for _, s := range c.URL {
		if remedy := urlRemedy(s); remedy != "" {
			bad("URL", redact(s), remedy)
		}
	}
	for _, f := range []struct{ field, path string }{
		{"CREDS_FILE", c.CredsFile}, {"NKEY_FILE", c.NkeyFile}, {"PASSWORD_FILE", c.PasswordFile},
		{"CA_FILE", c.CAFile}, {"CERT_FILE", c.CertFile}, {"KEY_FILE", c.KeyFile},
	} {
		if err := readable(f.path); err != nil {
			bad(f.field, f.path, err.Error()+"; give the path of a file that this process may read, or leave the variable out")
		}
	}
	if (c.User == "") != (c.PasswordFile == "") {
		bad("USER", c.User, "a user needs "+prefix+"_PASSWORD_FILE, and the other way round; set both or neither")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		bad("CERT_FILE", c.CertFile, "a certificate needs "+prefix+"_KEY_FILE, and the other way round; set both or neither")
	}
	if n := c.identities(); n > 1 {
		bad("CREDS_FILE", c.CredsFile, "only one of CREDS_FILE, NKEY_FILE and USER can be used; leave the others out")
	}
	if !c.AllowInsecurePlaintextForLab {
		errs = append(errs, c.insecure(prefix)...)
	}
	return errors.Join(errs...)
}

// insecure says why the connection would be one that others can read or make.
func (c Config) insecure(prefix string) (errs []error) {
	const made = "`egressctl init` makes what is needed"
	unless := "or, in a lab only, set " + prefix + "_ALLOW_INSECURE_PLAINTEXT_FOR_LAB=true"
	plain := c.CAFile == "" && c.CertFile == "" && !c.TLSFirst // each of them asks for TLS whatever the URL says
	for _, s := range c.URL {
		if plain && strings.HasPrefix(s, "nats://") {
			errs = append(errs, fmt.Errorf("%s_URL=%q: this connection would not be encrypted; use tls:// and %s_CA_FILE (%s), %s", prefix, redact(s), prefix, made, unless))
		}
	}
	if c.identities() == 0 && c.CertFile == "" {
		errs = append(errs, fmt.Errorf("no credentials for NATS: set %s_NKEY_FILE, or another of CREDS_FILE, USER and CERT_FILE (%s), %s", prefix, made, unless))
	}
	return errs
}

func (c Config) identities() (n int) {
	for _, s := range []string{c.CredsFile, c.NkeyFile, c.User} {
		if s != "" {
			n++
		}
	}
	return n
}

// urlRemedy says what to do about a server's URL, or "".
func urlRemedy(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Hostname() == "":
		return "not a URL; want tls://host:port"
	case u.Scheme != "nats" && u.Scheme != "tls":
		return "unknown scheme; want tls://, or nats:// in a lab"
	case u.User != nil:
		return "a URL must hold no user or password (it is logged); use the USER and PASSWORD_FILE variables"
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return "a server's URL ends with its port; want tls://host:port"
	}
	return ""
}

// redact removes what could be a secret from something that should be a URL.
func redact(s string) string {
	if i := strings.LastIndex(s, "@"); i >= 0 {
		return "...@" + s[i+1:]
	}
	return s
}

func readable(path string) error {
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

// options turns the configuration into options of nats.go. Whoever connects
// with them gives the connection to the returned nkeyFile, if there is one.
func (c Config) options() ([]nats.Option, *nkeyFile, error) {
	var out []nats.Option
	if c.CredsFile != "" {
		out = append(out, nats.UserCredentials(c.CredsFile))
	}
	var key *nkeyFile
	if c.NkeyFile != "" {
		key = &nkeyFile{path: c.NkeyFile}
		public, _, err := key.read(nil)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, nats.Nkey(public, key.sign))
	}
	if c.User != "" {
		out = append(out, nats.UserInfoHandler(c.userInfo))
	}
	if c.CAFile != "" {
		out = append(out, nats.RootCAs(c.CAFile))
	}
	if c.CertFile != "" {
		out = append(out, nats.ClientCert(c.CertFile, c.KeyFile))
	}
	if c.TLSFirst {
		out = append(out, nats.Secure(), nats.TLSHandshakeFirst())
	}
	return out, key, nil
}

// userInfo is called at each connect. A password file that can not be read
// then makes this attempt fail at the server, and the next one tries again.
func (c Config) userInfo() (user, password string) {
	b, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return c.User, ""
	}
	return c.User, strings.TrimRight(string(b), "\r\n")
}
