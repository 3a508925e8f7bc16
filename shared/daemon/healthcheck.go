// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// healthTimeout is less than what container engines give a health check, so
// that the reason is told instead of a kill.
const healthTimeout = 4 * time.Second

// CheckHealth asks a page such as /readyz of a daemon on this machine, and
// returns nil for the status 200, and otherwise what the page said. It uses no
// proxy.
func CheckHealth(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(strings.Join(strings.Fields(string(body)), " "))
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", url, answer.Status, err)
	}
	return nil
}

// HealthURL is where the page of a daemon that listens on address is asked for
// from the same machine: on loopback, if it listens on all addresses.
func HealthURL(address, page string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port) + page, nil
}
