// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckHealthTellsWhatThePageSays(t *testing.T) {
	sick := errors.New("the first pass is not done")
	s, err := Endpoints{Address: "127.0.0.1:0", Live: func() error { return nil }, Ready: func() error { return sick }}.Listen()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context()) }()
	for _, c := range []struct{ page, want string }{
		{"/livez", ""},
		{"/readyz", "503 Service Unavailable: the first pass is not done"},
		{"/none", "404 Not Found"},
	} {
		url, err := HealthURL(s.Addr(), c.page)
		if err != nil {
			t.Fatal(err)
		}
		err = CheckHealth(url)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.page, err, c.want)
		}
	}
	if err := CheckHealth("http://127.0.0.1:1/livez"); err == nil {
		t.Error("nobody listens, and the check is content")
	}
}

func TestHealthURL(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1:9809": "http://127.0.0.1:9809/livez", ":9809": "http://127.0.0.1:9809/livez", "0.0.0.0:9809": "http://127.0.0.1:9809/livez",
		"[::]:9809": "http://127.0.0.1:9809/livez", "[fd00::1]:9809": "http://[fd00::1]:9809/livez", "9809": "",
	} {
		if got, err := HealthURL(address, "/livez"); got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v, want %q", address, got, err, want)
		}
	}
}
