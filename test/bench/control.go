// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"egress-gateway.io/test/bench/datapath"
	"egress-gateway.io/test/lab"
	"egress-gateway.io/test/scenario"
)

type bench struct {
	w       *scenario.World
	o       options
	figures []Figure
}

const pool = "bench"

func (b *bench) control(ctx context.Context) error {
	if err := b.w.StartAgents(ctx); err != nil {
		return err
	}
	if err := b.w.CreatePool(ctx, scenario.LargePool(pool, b.o.tenants+2*b.o.samples+10)); err != nil {
		return err
	}
	few, err := b.labelToPacket(ctx, "few", b.o.samples)
	if err != nil {
		return err
	}
	b.add("label to first translated packet, p50", 1, ms(percentile(few, 50)), "ms", 0)
	b.add("label to first translated packet, p99", 1, ms(percentile(few, 99)), "ms", 300)

	if err := b.fill(ctx); err != nil {
		return err
	}
	many, err := b.labelToPacket(ctx, "many", b.o.samples)
	if err != nil {
		return err
	}
	b.add("one more tenant: label to first translated packet, p50", b.o.tenants, ms(percentile(many, 50)), "ms", 0)
	b.add("one more tenant: label to first translated packet, p99", b.o.tenants, ms(percentile(many, 99)), "ms", 0)
	b.add("one more tenant: ratio of the medians, among many to alone", b.o.tenants, float64(percentile(many, 50))/float64(percentile(few, 50)), "", 0)

	for _, name := range []string{"cluster-agent", lab.GatewayAgentName} {
		rss, err := datapath.ResidentMiB(b.w.Process(name).PID)
		if err != nil {
			return err
		}
		b.add("memory of "+name, b.o.tenants, rss, "MiB", 64)
	}
	return b.fromEmpty(ctx)
}

// labelToPacket takes the time from the label to the first packet of a pod that
// the outside server answers, n times, one tenant after the other. The pod
// sends a packet each millisecond all the time, as an impatient user would.
func (b *bench) labelToPacket(ctx context.Context, prefix string, n int) ([]time.Duration, error) {
	var took []time.Duration
	for i := range n {
		ns := fmt.Sprintf("%s-%d", prefix, i)
		if err := b.w.AddNamespace(ctx, ns); err != nil {
			return nil, err
		}
		p, err := b.w.AddPod(ctx, b.w.Nodes()[i%2], ns, lab.SharedNetwork())
		if err != nil {
			return nil, err
		}
		d, source, err := b.once(ctx, p)
		if err != nil {
			return nil, err
		}
		t, err := b.w.WaitReady(ctx, ns, time.Minute)
		if err != nil {
			return nil, err
		}
		if t.EgressIP() != source {
			return nil, fmt.Errorf("the first packet of %s was seen from %s; its egress IP is %s", ns, source, t.EgressIP())
		}
		took = append(took, d)
		// The next one shall not be measured beside many of its like.
		if err := b.w.Unlabel(ctx, ns); err != nil {
			return nil, err
		}
		if err := b.w.WaitGone(ctx, ns, time.Minute); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// once labels the pod's namespace and waits for the first answer.
func (b *bench) once(ctx context.Context, p *lab.Pod) (time.Duration, netip.Addr, error) {
	conn, err := p.DialUDP(net.JoinHostPort(lab.Server, strconv.Itoa(lab.EchoPort)))
	if err != nil {
		return 0, netip.Addr{}, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var sender sync.WaitGroup
	sender.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_, _ = conn.Write([]byte("x")) // refused until the tenant is served
			}
		}
	})
	defer func() { cancel(); sender.Wait() }()
	start := time.Now()
	if err := b.w.Label(ctx, p.Namespace, pool); err != nil {
		return 0, netip.Addr{}, err
	}
	buf := make([]byte, 100)
	for ctx.Err() == nil {
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return 0, netip.Addr{}, err
		}
		n, err := conn.Read(buf)
		if err != nil {
			continue // no answer yet, or an ICMP error
		}
		took := time.Since(start)
		from, _, _ := strings.Cut(string(buf[:n]), " ")
		source, err := netip.ParseAddrPort(from)
		return took, source.Addr(), err
	}
	return 0, netip.Addr{}, errors.New("no packet of " + p.String() + " was answered in 30 s")
}

// fill makes many tenants, and waits until all are Ready.
func (b *bench) fill(ctx context.Context) error {
	start := time.Now()
	var wg sync.WaitGroup
	work, failed := make(chan int), make(chan error, b.o.tenants)
	for range 8 {
		wg.Go(func() {
			for i := range work {
				if err := b.w.CreateNamespace(ctx, fmt.Sprintf("tenant-%04d", i), map[string]string{scenario.LabelPool: pool}, nil); err != nil {
					failed <- err
				}
			}
		})
	}
	for i := range b.o.tenants {
		work <- i
	}
	close(work)
	wg.Wait()
	if len(failed) > 0 {
		return <-failed
	}
	created := time.Since(start)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	err := scenario.Until(ctx, "all tenants to be Ready", func(ctx context.Context) (bool, error) {
		tenants, err := b.w.ListTenants(ctx)
		ready := 0
		for _, t := range tenants {
			if t.Ready() {
				ready++
			}
		}
		if ready < b.o.tenants {
			time.Sleep(200 * time.Millisecond) // listing a thousand objects costs the API server
		}
		return ready == b.o.tenants, err
	})
	b.add("all tenants Ready, after the last namespace was created", b.o.tenants, (time.Since(start) - created).Seconds(), "s", 0)
	return err
}

// fromEmpty reboots the VM and takes the time until all tenants are in its
// kernel, beside what the kernel needs for the same links and addresses alone.
func (b *bench) fromEmpty(ctx context.Context) error {
	if err := b.w.ResetGateway(); err != nil {
		return err
	}
	floor, err := b.floor()
	if err != nil {
		return err
	}
	if err := b.w.ResetGateway(); err != nil {
		return err
	}
	start := time.Now()
	if _, err := b.w.StartGatewayAgent(ctx, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	err = scenario.Until(ctx, "all tenants in the gateway's kernel", func(context.Context) (bool, error) {
		// The gateway address is the last thing of a tenant to be set.
		out, err := b.w.RunInGateway("sh", "-c", "ip -o -4 addr | grep -c ' eg'")
		if err != nil && strings.TrimSpace(out) != "0" {
			return false, err
		}
		return strings.TrimSpace(out) == strconv.Itoa(b.o.tenants), nil
	})
	if err != nil {
		return err
	}
	took := time.Since(start)
	b.add("tenants from an empty kernel, agent start included", b.o.tenants, took.Seconds(), "s", 5)
	b.add("the same links and addresses by ip -batch", b.o.tenants, floor.Seconds(), "s", 0)
	b.add("tenants from an empty kernel: ratio to ip -batch", b.o.tenants, took.Seconds()/floor.Seconds(), "", 0)
	return nil
}

// floor makes the links and addresses, and nothing else, by one ip -batch.
func (b *bench) floor() (time.Duration, error) {
	var batch strings.Builder
	address := netip.MustParseAddr("192.168.104.1")
	for i := range b.o.tenants {
		a := address.As4()
		fmt.Fprintf(&batch, "link add floor%d link enp1s0 address 02:00:%02x:%02x:%02x:%02x type macvlan mode private\n", i, a[0], a[1], a[2], a[3])
		fmt.Fprintf(&batch, "link set floor%d up\naddr add %s/32 dev floor%d\n", i, address, i)
		address = address.Next()
	}
	file, err := os.CreateTemp("", "batch")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	if _, err := file.WriteString(batch.String()); err != nil {
		return 0, errors.Join(err, file.Close())
	}
	if err := file.Close(); err != nil {
		return 0, err
	}
	if out, err := b.w.RunInGateway("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	start := time.Now()
	if out, err := b.w.RunInGateway("ip", "-batch", file.Name()); err != nil {
		return 0, fmt.Errorf("ip -batch: %w: %s", err, out)
	}
	return time.Since(start), nil
}

func percentile(d []time.Duration, p int) time.Duration {
	s := slices.Clone(d)
	slices.Sort(s)
	return s[min(len(s)-1, len(s)*p/100)]
}
