// SPDX-License-Identifier: Apache-2.0

package natsserver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// asidePrefix begins the names of directories that hold damaged streams.
const asidePrefix = "damaged-"

// setAside moves the streams that the server found on disk and could not read to
// a directory of their own, and returns where they are now. The server says so in
// a warning only, and whoever then makes the stream again would write over what
// may still be saved.
func setAside(store string, ns *server.Server) ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(store, "jetstream", "*", "streams", "*"))
	if err != nil {
		return nil, fmt.Errorf("look for streams: %w", err)
	}
	have, err := loaded(ns)
	if err != nil {
		return nil, err
	}
	var moved []string
	for _, dir := range dirs {
		account, stream := filepath.Base(filepath.Dir(filepath.Dir(dir))), filepath.Base(dir)
		if have[filepath.Join(account, stream)] || !isDir(dir) {
			continue
		}
		to := filepath.Join(store, asidePrefix+time.Now().UTC().Format("20060102T150405.000000000"), account, stream)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return moved, fmt.Errorf("put damaged stream %s aside: %w", stream, err)
		}
		if err := os.Rename(dir, to); err != nil {
			return moved, fmt.Errorf("put damaged stream %s aside: %w", stream, err)
		}
		moved = append(moved, to)
	}
	return moved, nil
}

// loaded returns the streams that the server has, as account/stream.
func loaded(ns *server.Server) (map[string]bool, error) {
	info, err := ns.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return nil, fmt.Errorf("ask the server for its streams: %w", err)
	}
	out := map[string]bool{}
	for _, a := range info.AccountDetails {
		for _, s := range a.Streams {
			out[filepath.Join(a.Name, s.Name)] = true
		}
	}
	return out, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// setAsideDirs are those that are still there.
func setAsideDirs(store string) []string {
	entries, err := os.ReadDir(store)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), asidePrefix) {
			out = append(out, filepath.Join(store, e.Name()))
		}
	}
	return out
}
