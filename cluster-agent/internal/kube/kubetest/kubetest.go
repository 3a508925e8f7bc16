// SPDX-License-Identifier: Apache-2.0

// Package kubetest runs a real API server with a real etcd for tests. Only tests
// import it.
//
// kube-apiserver is built once by `make lab-bin`; etcd is Debian's. A package
// starts one server in its TestMain with Main, and its tests share it.
package kubetest

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// The users of the server, which are also their tokens.
const (
	Admin = "admin" // may do anything
	Agent = "agent" // the service account of the cluster-agent
)

const tokens = `admin,admin,u1,"system:masters"
agent,system:serviceaccount:egress-gateway:cluster-agent,u2,"system:serviceaccounts,system:serviceaccounts:egress-gateway"
`

// startTimeout is how long both servers may take together; usually it is 4 s.
const startTimeout = 2 * time.Minute

// Server is an API server with an etcd of its own.
type Server struct {
	dir, host string
	api, etcd *exec.Cmd
	apiArgs   []string // the program and its arguments
}

// Main starts a server, applies the project's manifests and those of the
// stand-in for OVN, runs the tests and stops everything. It returns the exit code
// of the test binary. set receives the server before the tests run.
func Main(m *testing.M, set func(*Server)) int {
	s, err := Start()
	if err == nil {
		defer s.Stop()
		root := Root()
		err = s.Apply(context.Background(), root+"/deploy/crds", root+"/test/lab/crds", root+"/deploy/base/namespace.yaml", root+"/deploy/base/rbac.yaml")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubetest:", err)
		return 1
	}
	set(s)
	return m.Run()
}

// Root is the directory of the module.
func Root() string {
	dir, err := os.Getwd()
	for err == nil && dir != "/" {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

// Start starts etcd and the API server on free ports of the loopback and waits
// until they are ready.
func Start() (*Server, error) {
	binary := filepath.Join(Root(), "build/bin/kube-apiserver")
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("%s is missing: run `make lab-bin` first (%w)", binary, err)
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		return nil, fmt.Errorf("etcd is missing: apt-get install etcd-server (%w)", err)
	}
	dir, err := os.MkdirTemp("", "kubetest-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir}
	if err := s.start(binary); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(binary string) error {
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	if err := s.writeFiles(); err != nil {
		return err
	}
	clients, peers := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	if s.etcd, err = s.run("etcd", "etcd", "--data-dir", s.dir+"/etcd", "--listen-client-urls", clients, "--advertise-client-urls", clients,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers, "--unsafe-no-fsync"); err != nil {
		return err
	}
	s.host = "https://127.0.0.1:" + ports[2]
	s.apiArgs = []string{binary, "--etcd-servers=" + clients, "--secure-port=" + ports[2], "--bind-address=127.0.0.1",
		"--cert-dir=" + s.dir + "/certs", "--service-account-issuer=https://kubetest", "--service-account-key-file=" + s.dir + "/sa.key",
		"--service-account-signing-key-file=" + s.dir + "/sa.key", "--token-auth-file=" + s.dir + "/tokens.csv", "--authorization-mode=RBAC"}
	return s.StartAPI()
}

// StartAPI starts the API server and waits until it is ready; Start has done so.
func (s *Server) StartAPI() (err error) {
	if s.api, err = s.run("kube-apiserver", s.apiArgs[0], s.apiArgs[1:]...); err != nil {
		return err
	}
	return s.await()
}

// KillAPI kills the API server; etcd goes on.
func (s *Server) KillAPI() {
	_ = s.api.Process.Kill()
	_ = s.api.Wait()
	s.api = nil
}

func (s *Server) writeFiles() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return errors.Join(
		os.WriteFile(s.dir+"/sa.key", pem.EncodeToMemory(block), 0o600),
		os.WriteFile(s.dir+"/tokens.csv", []byte(tokens), 0o600))
}

// run starts a program that dies with the test binary, whatever ends that.
func (s *Server) run(name, path string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return cmd, nil
}

// await waits until the API server answers that it is ready.
func (s *Server) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 2 * time.Second} //nolint:gosec // its own certificate, on the loopback
	defer client.CloseIdleConnections()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.host+"/readyz", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+Admin)
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kube-apiserver did not get ready:\n%s", s.tail("kube-apiserver"))
		case <-tick.C:
		}
	}
}

// tail returns the end of a program's log.
func (s *Server) tail(name string) string {
	f, err := os.Open(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const size = 2000
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > size {
		_, _ = f.Seek(-size, io.SeekEnd)
	} else {
		_, _ = f.Seek(0, io.SeekStart)
	}
	b, _ := io.ReadAll(f)
	return string(b)
}

// Stop ends both programs and deletes their files.
func (s *Server) Stop() {
	for _, cmd := range []*exec.Cmd{s.api, s.etcd} {
		if cmd != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	_ = os.RemoveAll(s.dir)
}

// Config returns how a user reaches the server, without any limit of its own.
func (s *Server) Config(user string) *rest.Config {
	return &rest.Config{Host: s.host, BearerToken: user, TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: -1}
}

// Kubeconfig writes a kubeconfig file for a user and returns its path.
func (s *Server) Kubeconfig(user string) (string, error) {
	path := filepath.Join(s.dir, user+".kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, s.host, user)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// freePorts returns ports that nobody listens on now.
func freePorts(n int) ([]string, error) {
	var out []string
	var open []net.Listener
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		open = append(open, l)
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, err
		}
		out = append(out, port)
	}
	return out, nil
}
