// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"egress-gateway.io/shared/natsconf"
)

const initIntro = `Makes a directory with all that a secured NATS and its users need, or adds to it.
A second run with the same options changes nothing. Keep the directory offline;
what each machine needs lies in a folder of its own.`

// serverList collects --nats-server NAME=HOST[,HOST...].
type serverList []natsconf.Server

func (l *serverList) String() string { return "" }

func (l *serverList) Set(s string) error {
	name, hosts, ok := strings.Cut(s, "=")
	if !ok {
		return errors.New("want NAME=HOST[,HOST...]")
	}
	*l = append(*l, natsconf.Server{Name: name, Hosts: strings.Split(hosts, ",")})
	return nil
}

// initOptions are those of `egressctl init`.
type initOptions struct {
	dir                            string
	clusters, gateways, hosts, add words
	servers                        serverList
	base                           natsconf.Installation
	rotate, retire, remove         string
	renew                          bool
}

func (o *initOptions) flags() *flag.FlagSet {
	f := flag.NewFlagSet("init", flag.ContinueOnError)
	f.StringVar(&o.dir, "dir", "", "the `directory`; required")
	f.Var(&o.clusters, "cluster", "`name` of a cluster: its CLUSTER_NAME (may be repeated)")
	f.Var(&o.gateways, "gateway", "`name` of a gateway: its GATEWAY_NAME (may be repeated)")
	f.Var(&o.hosts, "nats-host", "`host` names and addresses of the one NATS server, the first one for URLs")
	f.Var(&o.servers, "nats-server", "`name=host,...` of each of three NATS servers, instead of --nats-host (repeated)")
	f.Var(&o.add, "add-gateway", "the same as --gateway, for a directory that exists")
	f.StringVar(&o.rotate, "rotate", "", "give this `user` a new key and certificate; its old key stays valid")
	f.StringVar(&o.retire, "retire", "", "end the old key of this `user`")
	f.StringVar(&o.remove, "remove", "", "end the keys of this gateway or cluster, by `name`, and remove its folder")
	f.BoolVar(&o.renew, "renew", false, "make new certificates for those with less than a third of their life left")
	f.IntVar(&o.base.Port, "port", natsconf.DefaultPort, "NATS's `port`; this and the other ports and paths: for a new directory")
	f.IntVar(&o.base.RoutePort, "route-port", natsconf.DefaultRoutePort, "`port` between NATS servers")
	f.IntVar(&o.base.MonitorPort, "monitor-port", natsconf.DefaultMonitorPort, "NATS's monitoring `port`, on 127.0.0.1; 0 for none")
	f.StringVar(&o.base.ConfigDir, "config-dir", natsconf.DefaultConfigDir, "where NATS finds its folder, as its `path` there")
	f.StringVar(&o.base.StoreDir, "store-dir", natsconf.DefaultStoreDir, "where NATS keeps its streams, as its `path` there")
	f.StringVar(&o.base.CredentialsDir, "credentials-dir", natsconf.DefaultCredentialsDir, "where an agent finds its folder, as its `path` there")
	return f
}

func runInit(_ context.Context, e env, args []string) error {
	var o initOptions
	f := o.flags()
	if err := e.parse(f, initIntro, args); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	d, err := natsconf.Open(o.dir, e.now)
	isNew := errors.Is(err, natsconf.ErrNoInstallation)
	if err != nil && (!isNew || o.changes() > 0) {
		return err
	}
	if !isNew {
		if err := o.onlyWhenNew(f, d.Installation()); err != nil {
			return err
		}
	}
	changed, err := o.apply(d)
	if err != nil {
		return err
	}
	if len(changed) == 0 {
		fmt.Fprintf(e.out, "%s is up to date; nothing was changed.\n", o.dir)
		return nil
	}
	for _, path := range changed {
		fmt.Fprintln(e.out, "wrote", path)
	}
	fmt.Fprint(e.out, o.next(changed))
	return nil
}

// onlyWhenNew refuses options that would be of no effect.
func (o *initOptions) onlyWhenNew(f *flag.FlagSet, have natsconf.Installation) (err error) {
	values := map[string]any{"port": have.Port, "route-port": have.RoutePort, "monitor-port": have.MonitorPort,
		"config-dir": have.ConfigDir, "store-dir": have.StoreDir, "credentials-dir": have.CredentialsDir}
	f.Visit(func(given *flag.Flag) {
		if v, only := values[given.Name]; only && fmt.Sprint(v) != given.Value.String() && err == nil {
			err = fmt.Errorf("--%s is for a new directory, and this one has %v; change it in installation.json, then run `egressctl init --dir %s`", given.Name, v, o.dir)
		}
	})
	return err
}

// changes counts the options that act on a directory that exists.
func (o *initOptions) changes() (n int) {
	for _, set := range []bool{o.rotate != "", o.retire != "", o.remove != "", o.renew, len(o.add) > 0} {
		if set {
			n++
		}
	}
	return n
}

func (o *initOptions) check() error {
	switch {
	case o.dir == "":
		return usage("--dir is required")
	case o.changes() > 1:
		return usage("only one of --add-gateway, --rotate, --retire, --remove and --renew at a time")
	case len(o.hosts) > 0 && len(o.servers) > 0:
		return usage("--nats-host is for one server, --nats-server for three; give one of them")
	}
	return nil
}

func (o *initOptions) apply(d *natsconf.Dir) ([]string, error) {
	switch {
	case o.rotate != "":
		return d.Rotate(o.rotate)
	case o.retire != "":
		return d.Retire(o.retire)
	case o.remove != "":
		return d.Remove(o.remove)
	case o.renew:
		return d.Renew()
	}
	servers := []natsconf.Server(o.servers)
	if len(o.hosts) > 0 {
		servers = []natsconf.Server{{Name: "nats", Hosts: o.hosts}}
	}
	return d.Init(natsconf.Spec{Clusters: o.clusters, Gateways: slices.Concat(o.gateways, o.add), Servers: servers, Base: o.base})
}

// next says what has to follow.
func (o *initOptions) next(changed []string) string {
	var b strings.Builder
	if slices.ContainsFunc(changed, func(p string) bool { return strings.HasPrefix(p, "nats/") }) {
		b.WriteString("Next: copy nats/ to the NATS server and have it read its configuration again: `nats-server --signal reload`, or SIGHUP.\n")
	}
	if o.rotate != "" {
		fmt.Fprintf(&b, "Then: copy the folder of %s to where it is used. Once it has connected with the new key: `egressctl init --dir %s --retire %s`.\n", o.rotate, o.dir, o.rotate)
	}
	return b.String()
}

func runCerts(_ context.Context, e env, args []string) error {
	f := flag.NewFlagSet("certs", flag.ContinueOnError)
	dir := f.String("dir", "", "the `directory`; required")
	days := f.Int("days", 60, "exit with 1 if a certificate expires within so many `days`")
	if err := e.parse(f, "Lists the certificates of the directory and when they expire.", args); err != nil {
		return err
	}
	if *dir == "" {
		return usage("--dir is required")
	}
	d, err := natsconf.Open(*dir, e.now)
	if err != nil {
		return err
	}
	list, err := d.Certificates()
	if err != nil {
		return err
	}
	soon := 0
	tab := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "CERTIFICATE\tOF\tEXPIRES\tDAYS LEFT")
	for _, c := range list {
		left := c.NotAfter.Sub(e.now())
		if left < time.Duration(*days)*24*time.Hour {
			soon++
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%d\n", c.Path, c.Name, c.NotAfter.Format(time.DateOnly), int(left.Hours()/24))
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	if soon > 0 {
		return fmt.Errorf("%d of %d certificates have expired or expire within %d days; `egressctl init --dir %s --renew` makes new ones", soon, len(list), *days, *dir)
	}
	return nil
}
