// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"time"

	"egress-gateway.io/shared/natsconf"
	"egress-gateway.io/test/lab/namespace"
)

// What follows is for a lab of another program, such as one that `lab up` left
// running.

// find returns as much of a running lab as its name and directory tell.
func find(name string) (*Lab, error) {
	found, err := Processes(name)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("lab %s is not up", name)
	}
	l := &Lab{opts: Options{Name: name, Dir: found[0].Dir}}
	d, err := natsconf.Open(l.path("installation"), time.Now)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	l.natsInstallation = d.Installation()
	return l, nil
}

// Get fetches a page from a part of a running lab.
func Get(ctx context.Context, lab string, from Part, url string) (string, error) {
	l, err := find(lab)
	if err != nil {
		return "", err
	}
	return l.HTTPGet(ctx, from, url)
}

// Environment returns what the agent in a part of a running lab has in its
// environment, as NAME=value, for commands beside it: the variables of
// gateway-agent for the gateway VM, KUBECONFIG for the control namespace.
func Environment(lab string, part Part) ([]string, error) {
	l, err := find(lab)
	if err != nil {
		return nil, err
	}
	if !namespace.Exists(l.Namespace(part)) {
		return nil, fmt.Errorf("lab %s has no part %q", lab, part)
	}
	switch part {
	case PartGateway:
		var env []string
		for name, value := range l.GatewayEnv() {
			env = append(env, name+"="+value)
		}
		return env, nil
	case PartControl:
		return []string{"KUBECONFIG=" + l.Kubeconfig()}, nil
	default:
		return nil, nil
	}
}
