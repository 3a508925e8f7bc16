// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// block is a fenced block of commands in a page, and what they should print.
type block struct {
	line     int    // of the page, where the fence opens
	host     string // where the commands are run
	commands string
	want     []string // lines that the output must have; … stands for anything
}

// parsePage reads a page. A fence that opens with "```sh HOST" holds commands for a
// host; one with "```text" that follows it, with nothing but text between,
// holds lines of their output, in this order, though others may stand between.
// All other fences are ignored, but for "```sh" without a host, which is an
// error: its commands would never be run.
func parsePage(r io.Reader, hosts ...string) ([]block, error) {
	var blocks []block
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		info, fence := strings.CutPrefix(lines.Text(), "```")
		if !fence {
			continue
		}
		opened, words := n, strings.Fields(info)
		var body []string
		closed := false
		for lines.Scan() {
			n++
			if closed = lines.Text() == "```"; closed {
				break
			}
			body = append(body, lines.Text())
		}
		if !closed {
			return nil, fmt.Errorf("line %d: the block is not closed", opened)
		}
		switch {
		case len(words) == 0:
		case words[0] == "sh" && (len(words) != 2 || !slices.Contains(hosts, words[1])):
			return nil, fmt.Errorf("line %d: want ```sh and one of %v", opened, hosts)
		case words[0] == "sh":
			blocks = append(blocks, block{line: opened, host: words[1], commands: strings.Join(body, "\n") + "\n"})
		case words[0] == "text" && len(blocks) > 0:
			last := &blocks[len(blocks)-1]
			last.want = append(last.want, body...)
		}
	}
	if len(blocks) == 0 {
		return nil, errors.Join(errors.New("the page has no commands"), lines.Err())
	}
	return blocks, lines.Err()
}

// check compares what the commands printed with what the page shows: each of
// its lines, in order. Runs of spaces are one space, … is anything.
func (b block) check(output string) error {
	got := strings.Split(output, "\n")
	for _, want := range b.want {
		words := strings.Fields(want)
		if len(words) == 0 {
			continue
		}
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(strings.Join(words, " ")), "…", ".*") + "$")
		at := slices.IndexFunc(got, func(line string) bool {
			return pattern.MatchString(strings.Join(strings.Fields(line), " "))
		})
		if at < 0 {
			return fmt.Errorf("the page shows %q below the commands of line %d; they printed\n%s", want, b.line, output)
		}
		got = got[at+1:]
	}
	return nil
}
