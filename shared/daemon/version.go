// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"fmt"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Set at link time: -ldflags "-X egress-gateway.io/shared/daemon.version=v1.2.3",
// and so on. What is not set is taken from what the go command recorded.
var version, commit, date string

// Build says what a program was built from. Unknown fields are empty, but for
// Version.
type Build struct {
	Version string // a tag, or "devel" and a commit
	Commit  string // the full hash, with "-dirty" if the tree had changes
	Date    string // of the commit, not of the build: RFC 3339, UTC
}

// ReadBuild returns what the running program was built from.
func ReadBuild() Build {
	var recorded Build
	if info, ok := debug.ReadBuildInfo(); ok {
		recorded = buildOf(info)
	}
	return Build{
		Version: cmp.Or(version, recorded.Version, "devel"),
		Commit:  cmp.Or(commit, recorded.Commit),
		Date:    cmp.Or(date, recorded.Date),
	}
}

// String is the answer to --version: one line.
func (b Build) String() string {
	return fmt.Sprintf("%s (commit %s, %s)", b.Version, cmp.Or(b.Commit, "unknown"), cmp.Or(b.Date, "date unknown"))
}

// Metric returns egress_build_info.
func (b Build) Metric() prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "egress_build_info", Help: "What the program was built from; always 1. date is the commit's.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "date": b.Date},
	})
	g.Set(1)
	return g
}

// Version returns the version alone.
func Version() string { return ReadBuild().Version }

func buildOf(info *debug.BuildInfo) Build {
	var b Build
	var dirty string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Date = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	b.Version = info.Main.Version
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
		if b.Commit != "" {
			b.Version += "-" + b.Commit[:min(len(b.Commit), 12)] + dirty
		}
	}
	if b.Commit != "" {
		b.Commit += dirty
	}
	return b
}
