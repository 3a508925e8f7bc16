// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"egress-gateway.io/test/lab/apbstandin"
	"egress-gateway.io/test/lab/namespace"
	"egress-gateway.io/test/lab/outside"
)

// insiders are the parts of the lab that run in this program.
type insiders struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

func newInsiders() *insiders {
	in := &insiders{}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	return in
}

func (in *insiders) start(name string, run func(ctx context.Context) error) {
	in.wg.Go(func() {
		if err := run(in.ctx); err != nil && !errors.Is(err, context.Canceled) {
			in.mu.Lock()
			in.errs = append(in.errs, fmt.Errorf("%s: %w", name, err))
			in.mu.Unlock()
		}
	})
}

// stop ends them all and returns what went wrong in them until now.
func (in *insiders) stop() error {
	in.cancel()
	in.wg.Wait()
	in.mu.Lock()
	defer in.mu.Unlock()
	err := errors.Join(in.errs...)
	in.errs = nil
	return err
}

// startServers starts the outside server, and one like it on LANHost.
func (l *Lab) startServers() error {
	for part, addrs := range map[Part][]string{
		PartExternal: l.dual([]string{Server, ServerFar}, Server6, ServerFar6),
		PartInternal: l.dual([]string{LANHost}, LANHost6),
	} {
		name := "server-" + string(part)
		if l.opts.Detach {
			argv := append([]string{"lab", "serve"}, addrs...)
			if _, err := l.Start(part, name, nil, argv...); err != nil {
				return err
			}
			continue
		}
		var s *outside.Server
		err := namespace.Do(l.Namespace(part), func() (err error) {
			s, err = outside.Listen(HTTPPort, EchoPort, addrs...)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		l.inside.start(name, s.Serve)
	}
	return nil
}

// startStandin starts what plays OVN's part, and waits until it knows the
// objects that are there.
func (l *Lab) startStandin(ctx context.Context) error {
	if l.opts.Detach {
		_, err := l.Start(PartControl, "standin", nil, "lab", "standin", "--name", l.opts.Name, "--kubeconfig", l.Kubeconfig())
		return err
	}
	logFile, err := os.OpenFile(l.path("log", "standin.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start stand-in: %w", err)
	}
	s, err := apbstandin.New(StandinConfig(l.opts.Name), l.RESTConfig(), slog.New(slog.NewJSONHandler(logFile, nil)))
	if err != nil {
		return errors.Join(err, logFile.Close())
	}
	l.inside.start("stand-in", func(ctx context.Context) error {
		defer logFile.Close()
		return s.Run(ctx)
	})
	select {
	case <-s.Synced():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for stand-in: %w", ctx.Err())
	}
}

// StandinConfig tells the stand-in where the nodes of a lab are.
func StandinConfig(lab string) apbstandin.Config {
	return apbstandin.Config{
		Namespace: func(node string) string { return namespaceOf(lab, Part(node)) },
		NIC:       nodeNIC, ClusterNetworks: []string{PodNetworks, PodNetworks6},
	}
}
