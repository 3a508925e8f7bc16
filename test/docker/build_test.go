// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// offTheNetwork are dockerd's flags where no container needs a network, but the
// machine's for building.
var offTheNetwork = []string{"--bridge", "none", "--iptables=false", "--ip-forward=false"}

// programs are the images and what is in them.
var programs = map[string]string{"gateway-agent": "gateway-agent", "cluster-agent": "cluster-agent", "egressctl": "egressctl", "nats": "nats-server"}

// imagesTar returns a file for `docker load` with all images. It is in the
// user's cache, under a hash of all that goes into the images; it comes there
// once the images were built and their build was found to be reproducible.
func imagesTar(t *testing.T) string {
	t.Helper()
	bases := makeBases(t)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "egress-gateway", "docker-images-"+sourceHash(t, bases))
	tar := filepath.Join(dir, "images.tar")
	defer lockDir(t, dir)()
	if _, err := os.Stat(tar); err == nil {
		return tar
	}
	built := t.Run("build", func(t *testing.T) {
		e := startEngine(t, nil, offTheNetwork...)
		began := time.Now()
		e.build(bases)
		t.Logf("images built in %s", time.Since(began).Round(time.Second))
		e.reproducible(bases)
		args := []string{"save", "-o", tar + ".part"}
		for name := range programs {
			args = append(args, image(name))
		}
		e.docker(args...)
	})
	if !built {
		t.FailNow()
	}
	if err := os.Rename(tar+".part", tar); err != nil {
		t.Fatal(err)
	}
	dropOldImages(t, filepath.Dir(dir))
	return tar
}

// lockDir makes a directory and keeps others from it until the returned function
// is called.
func lockDir(t *testing.T, dir string) (unlock func()) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { _ = f.Close() }
}

// dropOldImages keeps the images of the last few versions of the source.
func dropOldImages(t *testing.T, cache string) {
	const keep = 4
	dirs, err := filepath.Glob(filepath.Join(cache, "docker-images-*"))
	if err != nil {
		t.Fatal(err)
	}
	age := func(dir string) time.Time {
		info, err := os.Stat(dir)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(age(b).Unix(), age(a).Unix()) })
	for _, old := range dirs[min(keep, len(dirs)):] {
		if err := os.RemoveAll(old); err != nil {
			t.Error(err)
		}
	}
}

// sourceHash covers what .dockerignore lets through, and the bases.
func sourceHash(t *testing.T, bases string) string {
	t.Helper()
	h := sha256.New()
	fmt.Fprintln(h, filepath.Base(bases), version, commit, date)
	ignore, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(ignore)) {
		name, ours := strings.CutPrefix(strings.TrimSpace(line), "!")
		if !ours {
			continue
		}
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if d.IsDir() && d.Name() == "testdata" {
				return fs.SkipDir
			}
			if d.IsDir() || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			fmt.Fprintln(h, path)
			_, err = io.Copy(h, f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:20]
}

// reproducible compares the programs with those that this machine compiles in
// another directory, and the layers with those of a second build, for which
// another base of the same content keeps docker from using its cache.
func (e *engine) reproducible(bases string) {
	t := e.t
	t.Helper()
	out := t.TempDir()
	compile := exec.Command("images/compile.sh", out)
	compile.Dir, compile.Env = root, append(os.Environ(), "VERSION="+version, "COMMIT="+commit, "DATE="+date)
	if b, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	for name, program := range programs {
		here, err := os.ReadFile(filepath.Join(out, program))
		if err != nil {
			t.Fatal(err)
		}
		id := e.docker("create", "--network", "none", image(name))
		there := filepath.Join(t.TempDir(), program)
		e.docker("cp", id+":/"+program, there)
		built, err := os.ReadFile(there)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(here, built) {
			t.Errorf("%s in the image differs from what the same source gives here", program)
		}
	}
	layers := func(tag string) string {
		return e.docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", tag)
	}
	first := layers(image("gateway-agent"))
	e.docker("import", filepath.Join(bases, "base.tar"), "base:again")
	e.docker("build", "--network", "host", "--build-arg", "BASE=base:again", "--build-arg", "BUILDER=builder:test",
		"--build-arg", "VERSION="+version, "--build-arg", "COMMIT="+commit, "--build-arg", "DATE="+date,
		"-f", "images/gateway-agent/Dockerfile", "-t", "again", ".")
	if second := layers("again"); second != first {
		t.Errorf("two builds of gateway-agent differ in their layers: %s and %s", first, second)
	}
}

// makeBases returns the directory of base.tar and builder.tar.
func makeBases(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("./base.sh")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("base.sh: %v: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// build makes the images by the command that the documents name.
func (e *engine) build(bases string) {
	t := e.t
	t.Helper()
	e.docker("import", filepath.Join(bases, "base.tar"), "base:test")
	e.docker("import", "--change", "ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", filepath.Join(bases, "builder.tar"), "builder:test")
	cmd := e.command(t.Context(), "make", "images", "TAG="+version, "VERSION="+version, "COMMIT="+commit, "DATE="+date,
		"BASE=base:test", "BUILDER=builder:test", "BUILD_FLAGS=--network host")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make images: %v\n%s", err, out[max(0, len(out)-6000):])
	}
	for name := range programs {
		if !strings.Contains(string(out), image(name)+" ") {
			t.Errorf("make images does not print the size of %s", name)
		}
	}
}
