// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"egress-gateway.io/test/lab/namespace"
)

var (
	apiURL  = fmt.Sprintf("https://%s:%d", Control, apiPort)
	etcdURL = fmt.Sprintf("http://%s:%d", Control, etcdPort)
)

// startTimeout bounds the start of each control process. Two seconds are
// usual; a machine that builds something else needs more.
const startTimeout = 90 * time.Second

// StartEtcd starts etcd on the data that it had, and waits until it answers.
func (l *Lab) StartEtcd(ctx context.Context) error {
	peer := fmt.Sprintf("http://%s:%d", Control, etcdPort+1)
	_, err := l.Start(PartControl, "etcd", nil, "etcd",
		"--data-dir", l.path("etcd"), "--unsafe-no-fsync", "--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn",
		"--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	if err != nil {
		return err
	}
	return l.awaitHTTP(ctx, "etcd", etcdURL+"/health", &http.Transport{DialContext: l.dialer(PartControl)})
}

// StartAPIServer starts the API server and waits until it is ready.
func (l *Lab) StartAPIServer(ctx context.Context) error {
	// Without API priority, service endpoints and the admission of service
	// accounts: nothing here needs them, and the server starts faster.
	_, err := l.Start(PartControl, "kube-apiserver", nil, "kube-apiserver",
		"--etcd-servers="+etcdURL, "--bind-address="+Control, "--advertise-address="+Control, "--secure-port="+strconv.Itoa(apiPort),
		"--tls-cert-file="+l.path("kube", "apiserver.crt"), "--tls-private-key-file="+l.path("kube", "apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+l.path("kube", "accounts.key"),
		"--service-account-signing-key-file="+l.path("kube", "accounts.key"),
		"--token-auth-file="+l.path("kube", "tokens.csv"), "--authorization-mode=RBAC", "--service-cluster-ip-range=10.96.0.0/16",
		"--enable-priority-and-fairness=false", "--endpoint-reconciler-type=none", "--profiling=false",
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition,DefaultTolerationSeconds,DefaultStorageClass",
		"--shutdown-delay-duration=0s", "--v=1")
	if err != nil {
		return err
	}
	transport, err := rest.TransportFor(l.RESTConfig())
	if err != nil {
		return fmt.Errorf("reach API server: %w", err)
	}
	return l.awaitHTTP(ctx, "kube-apiserver", apiURL+"/readyz", transport)
}

// KillAPIServer ends the API server with SIGKILL; etcd keeps what it wrote.
func (l *Lab) KillAPIServer() error { return l.kill("kube-apiserver") }

// startControllerManager starts the controllers that delete the contents of a
// namespace and the dependents of an owner. It must follow the CRDs: the
// garbage collector looks for new kinds twice a minute only.
func (l *Lab) startControllerManager() error {
	_, err := l.Start(PartControl, "kube-controller-manager", nil, "kube-controller-manager",
		"--kubeconfig="+l.path("kubeconfig"), "--leader-elect=false", "--bind-address="+Control, "--kube-api-qps=500", "--kube-api-burst=1000",
		"--controllers=namespace-controller,garbage-collector-controller,clusterrole-aggregation-controller,serviceaccount-controller",
		"--service-account-private-key-file="+l.path("kube", "accounts.key"), "--profiling=false", "--v=1")
	return err
}

// RESTConfig reaches the API server, as an administrator and without a rate
// limit, from wherever the caller is.
func (l *Lab) RESTConfig() *rest.Config {
	return &rest.Config{
		Host: apiURL, BearerToken: adminToken, TLSClientConfig: rest.TLSClientConfig{CAData: l.authority},
		Dial: l.dialer(PartControl), QPS: -1,
	}
}

// Kubeconfig is the path of the administrator's kubeconfig, of use inside the
// control namespace.
func (l *Lab) Kubeconfig() string { return l.path("kubeconfig") }

// Dialer opens connections from a part of the lab.
type Dialer struct {
	lab  *Lab
	part Part
}

// Dial connects within ten seconds or fails.
func (d *Dialer) Dial(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return d.lab.dial(ctx, d.part, network, addr)
}

func (l *Lab) dialer(part Part) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return l.dial(ctx, part, network, addr)
	}
}

func (l *Lab) dial(ctx context.Context, part Part, network, addr string) (c net.Conn, err error) {
	err = namespace.Do(l.Namespace(part), func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

func (l *Lab) kill(name string) error {
	if p := l.Process(name); p != nil {
		return p.Kill()
	}
	return nil
}

func (l *Lab) awaitHTTP(ctx context.Context, name, url string, transport http.RoundTripper) error {
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	return l.await(ctx, l.Process(name), func() error {
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(body)))
		}
		return err
	})
}

// await calls check until it succeeds. It gives up when the process ends or
// startTimeout is over, and tells the last error and where the log is.
func (l *Lab) await(ctx context.Context, p *Process, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%s ended before it was ready (%w), see %s", p.Name, p.Wait(), p.LogPath)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w (last: %w), see %s", p.Name, ctx.Err(), err, p.LogPath)
		case <-tick.C:
		}
	}
}
