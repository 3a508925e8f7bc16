// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"reflect"
	"strings"
	"testing"
)

const page = "# T\n\n```sh admin\nls\nid\n```\n\n```text\nuid=…   gid=0\n\nend\n```\n```\nart\n```\n```sh vm1\ntrue\n```\n"

func TestParsePage(t *testing.T) {
	got, err := parsePage(strings.NewReader(page), "admin", "vm1")
	want := []block{
		{line: 3, host: "admin", commands: "ls\nid\n", want: []string{"uid=…   gid=0", "", "end"}},
		{line: 16, host: "vm1", commands: "true\n"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, error %v", got, err)
	}
	for _, bad := range []string{"", "no commands", "```sh admin\nls", "```sh\nls\n```", "```sh elsewhere\nls\n```"} {
		if got, err := parsePage(strings.NewReader(bad), "admin"); err == nil {
			t.Errorf("%q: no error, but %+v", bad, got)
		}
	}
}

func TestCheckPage(t *testing.T) {
	b := block{want: []string{"NAME  READY", "blue …  True"}}
	for output, right := range map[string]bool{
		"NAME READY\nblue   192.0.2.1    True\n":    true,
		"x\nNAME    READY\ny\nblue 1 2 True":        true,
		"blue 1 True\nNAME READY\n":                 false, // the order
		"NAME READY\nblue 192.0.2.1 False\n":        false,
		"NAME READY\nblue 192.0.2.1 True, or not\n": false,
		"": false,
	} {
		if err := b.check(output); (err == nil) != right {
			t.Errorf("%q: %v", output, err)
		}
	}
}
