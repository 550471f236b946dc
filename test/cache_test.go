package test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/collector"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// stateOf is where the shims of a node keep what outlives a container.
func stateOf(n *node.Node) string { return filepath.Join(n.Dir, "root/io.containerd.wazero.v1") }

func cacheOf(n *node.Node) string { return filepath.Join(stateOf(n), "modules") }

// entriesOf are the names in the cache, none where it is not there.
func entriesOf(t *testing.T, n *node.Node) (names []string) {
	t.Helper()
	all, err := os.ReadDir(cacheOf(n))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// compileName is what the lock and the cgroup of the compilers of a node are called.
func compileName(n *node.Node) string {
	return fmt.Sprintf("wazero-compile-%x", sha256.Sum256([]byte(stateOf(n))))[:len("wazero-compile-")+8]
}

// compileGroups are the directories of that cgroup that are there.
func compileGroups(t *testing.T, n *node.Node) (dirs []string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + compileName(n), "/sys/fs/cgroup/" + compileName(n), "/sys/fs/cgroup/system.slice/" + compileName(n) + ".scope"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, found...)
	}
	return dirs
}

// compiling are the compile processes of a node.
func compiling(t *testing.T, n *node.Node) (pids []int) {
	t.Helper()
	for _, dir := range compileGroups(t, n) {
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // it may just have been removed
		for _, s := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if strings.HasSuffix(string(name), "\x00compile\x00") && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// nothingCompiles fails a test where a compilation has left anything but entries.
func nothingCompiles(t *testing.T, n *node.Node) {
	t.Helper()
	nothingMore(t, nil, func() []string {
		left := compileGroups(t, n)
		locks, err := filepath.Glob("/run/containerd-shim-wazero-v1/" + compileName(n) + "*")
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, locks...)
		for _, name := range entriesOf(t, n) {
			if strings.HasPrefix(name, "new-") || strings.HasPrefix(name, "old-") || strings.HasSuffix(name, ".lock") {
				left = append(left, name)
			}
		}
		spare, err := filepath.Glob(n.Dir + "/state/io.containerd.runtime.v2.task/*/*/compiled-*")
		if err != nil {
			t.Fatal(err)
		}
		return append(left, spare...)
	})
}

// variant is a module with other bytes, and what it does is the same: a custom section is
// added to it.
func variant(t *testing.T, name string, n int) []byte {
	t.Helper()
	return append(bytes.Clone(guest(t, name)), 0, 5, 1, 'x', byte(n>>16), byte(n>>8), byte(n))
}

// configured is a node whose shims have the given configuration.
func configured(t *testing.T, config string, opts node.Options) *node.Node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	opts.Env = append(opts.Env, "CONTAINERD_SHIM_WAZERO_CONFIG="+path)
	return newNode(t, opts)
}

// limited has a container live with so much memory.
func limited(bytes uint64) oci.SpecOpts { return oci.WithMemoryLimit(bytes) }

func TestTwentyContainersAtOnceAreOneCompilation(t *testing.T) {
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	n := newNode(t, options(sendTo(c.Addr())...))
	img := app(t, n, "probe.wasm")
	boxes := make([]*box, 20)
	for i := range boxes {
		boxes[i] = container(t, n, img, args("/app.wasm", "exit", strconv.Itoa(i)))
	}
	var wg sync.WaitGroup
	for i, b := range boxes {
		wg.Go(func() {
			if err := b.create(); err != nil {
				t.Error(err)
				return
			}
			if status := func() uint32 { b.mustStart(t); return b.exit(t) }(); status != uint32(i) {
				t.Errorf("%d: exit status %d", i, status)
			}
		})
	}
	wg.Wait()
	for _, b := range boxes {
		b.delete(t)
	}
	var compiled int
	for _, b := range boxes {
		if trace(t, c, b.ID(), "module.compile")["module.compile"].Attrs["wasm.cache.hit"] == "false" {
			compiled++
		}
	}
	if compiled != 1 {
		t.Errorf("compiled %d times, want once", compiled)
	}
	if got := entriesOf(t, n); len(got) != 1 {
		t.Errorf("the cache has %v", got)
	}
	nothingCompiles(t, n)
}

func TestNamespacesOfContainerdShareTheCache(t *testing.T) {
	n := newNode(t, options())
	img := app(t, n, "hello.wasm")
	if b, status := run(t, n, img, args("/app.wasm")); status != 0 {
		t.Fatalf("%d, %s", status, b.stderr)
	}
	entries := entriesOf(t, n)
	info, err := os.Stat(filepath.Join(cacheOf(n), entries[0], "sums"))
	if err != nil {
		t.Fatal(err)
	}
	ns := node.Namespace + "-other"
	export := filepath.Join(t.TempDir(), "image.tar")
	if out, err := n.Ctr(t.Context(), "image", "export", export, img.Name()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, a := range [][]string{{"image", "import", export}, {"run", "--rm", "--runtime", node.Runtime, img.Name(), "other", "/app.wasm"}, {"image", "rm", "--sync", img.Name()}} {
		cmd := n.Ctr(t.Context(), a...)
		cmd.Args[slices.Index(cmd.Args, "-n")+1] = ns
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", a, err, out)
		}
	}
	after, err := os.Stat(filepath.Join(cacheOf(n), entries[0], "sums"))
	if got := entriesOf(t, n); len(got) != 1 || err != nil || !os.SameFile(info, after) {
		t.Errorf("the cache has %v, %v: want the one entry as it was", got, err)
	}
}

// Whoever compiles is killed, at whatever moment: the next one compiles, and nothing is left.
func TestACompilationThatIsKilledLeavesNothingAndTheNextOneSucceeds(t *testing.T) {
	n := newNode(t, options())
	for i, victim := range []string{"the compile process", "the shim", "the shim", "the shim", "the shim", "the compile process"} {
		t.Run(fmt.Sprintf("%d %s", i, victim), func(t *testing.T) {
			img := image(t, n, fmt.Sprintf("killed-%d", i), node.Regular("app.wasm", variant(t, "probe.wasm", i)))
			b := container(t, n, img, args("/app.wasm", "exit", "3"))
			created := make(chan error, 1)
			go func() { created <- b.create() }()
			var pids []int
			eventually(t, "a compile process", func() bool { pids = compiling(t, n); return len(pids) > 0 })
			time.Sleep(rand.N(600 * time.Millisecond)) // at some moment
			if victim == "the shim" {
				pids = []int{shimPID(t, n, b.ID())}
			}
			if err := unix.Kill(pids[0], unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatal(err)
			}
			if err := <-created; err == nil && victim == "the shim" {
				t.Log("had been created") // the moment was a late one
			}
			b.remove()
			b.task = nil
			next, status := run(t, n, img, args("/app.wasm", "exit", "4"))
			if status != 4 {
				t.Errorf("the next one: %d, %s", status, next.stderr)
			}
			nothingCompiles(t, n)
		})
	}
}

// One who waits for another's compilation does not fail with that.
func TestACreateThatIsGivenUpHasAnotherCompile(t *testing.T) {
	n := newNode(t, options())
	img := app(t, n, "probe.wasm")
	first, second := container(t, n, img, args("/app.wasm", "exit", "1")), container(t, n, img, args("/app.wasm", "exit", "2"))
	var cancel context.CancelFunc
	first.ctx, cancel = context.WithCancel(first.ctx)
	errs := make(chan error, 2)
	go func() { errs <- first.create() }()
	eventually(t, "a compile process", func() bool { return len(compiling(t, n)) > 0 })
	done := make(chan error, 1)
	go func() { done <- second.create() }()
	eventually(t, "the second shim", func() bool {
		_, err := os.Stat(filepath.Join(n.Bundle(second.ID()), "bootstrap.json"))
		return err == nil
	})
	cancel()
	if err := <-errs; err == nil {
		t.Log("the first one had been created") // the machine is a fast one
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	second.mustStart(t)
	if status := second.exit(t); status != 2 {
		t.Errorf("exit status %d", status)
	}
	second.delete(t)
	first.ctx = second.ctx
	first.remove()
	nothingCompiles(t, n)
}

func TestWhereTheCacheIsOfNoUseAContainerStartsAllTheSame(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string) error{
		"a file":          func(_ *testing.T, dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"a symbolic link": func(t *testing.T, dir string) error { return os.Symlink(t.TempDir(), dir) },
		"open to others":  func(_ *testing.T, dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)) },
		"another user's":  func(_ *testing.T, dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 7, 7)) },
		"full":            func(t *testing.T, dir string) error { return mountSmall(t, dir, "size=256k") },
		"without inodes":  func(t *testing.T, dir string) error { return mountSmall(t, dir, "nr_inodes=3") },
		"read-only":       func(t *testing.T, dir string) error { return mountSmall(t, dir, "ro") },
		"of a parent's file": func(_ *testing.T, dir string) error {
			return errors.Join(os.Remove(filepath.Dir(dir)), os.WriteFile(filepath.Dir(dir), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, options())
			if err := os.MkdirAll(stateOf(n), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := spoil(t, cacheOf(n)); err != nil {
				t.Fatal(err)
			}
			img := app(t, n, "probe.wasm")
			for range 2 {
				if b, status := run(t, n, img, args("/app.wasm", "exit", "3")); status != 3 {
					t.Errorf("exit status %d, %s", status, b.stderr)
				}
			}
			if got := strings.Count(n.Log(), "compile cache: cannot be used, the module is compiled for this container alone"); got != 2 {
				t.Errorf("the log says so %d times, want 2:\n%s", got, n.Log())
			}
			if name != "of a parent's file" && name != "a file" {
				nothingCompiles(t, n)
			}
		})
	}
}

// mountSmall has a file system with little room at a path.
func mountSmall(t *testing.T, dir, options string) error {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,"+strings.TrimPrefix(options, "ro")); err != nil {
		return err
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if options == "ro" {
		return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return nil
}

func TestEntriesAreEvictedWhileContainersStart(t *testing.T) {
	n := configured(t, "[cache]\nentries = 2\n", options())
	images := make([]containerd.Image, 5)
	for i := range images {
		images[i] = image(t, n, fmt.Sprintf("evicted-%d", i), node.Regular("app.wasm", variant(t, "hello.wasm", i)))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				b := container(t, n, images[rand.N(len(images))], args("/app.wasm"))
				if err := b.create(); err != nil {
					t.Error(err)
					return
				}
				b.mustStart(t)
				if status := b.exit(t); status != 0 {
					t.Errorf("exit status %d, %s", status, b.stderr)
				}
				b.delete(t)
			}
		})
	}
	wg.Wait()
	if b, status := run(t, n, image(t, n, "evicted-last", node.Regular("app.wasm", variant(t, "hello.wasm", 9))), args("/app.wasm")); status != 0 {
		t.Errorf("%d, %s", status, b.stderr)
	}
	if got := entriesOf(t, n); len(got) > 2 {
		t.Errorf("the cache has %v, want two entries at most", got)
	}
	nothingCompiles(t, n)
}

// What compiling takes is not the container's to have.
func TestALargeModuleIsCompiledForAPodOf64MiB(t *testing.T) {
	n := newNode(t, options())
	b := container(t, n, app(t, n, "esbuild.wasm"), args("/app.wasm", "--version"), limited(64<<20))
	err := b.create()
	// It may not fit when it is loaded. It has been compiled.
	if got := entriesOf(t, n); len(got) != 1 || strings.HasSuffix(got[0], ".lock") {
		t.Errorf("the cache has %v, %v", got, err)
	}
	if err != nil && !strings.Contains(err.Error(), "memory limit of the container") {
		t.Errorf("create: %v", err)
	}
	nothingCompiles(t, n)
}

func TestTheMemoryOfAllCompilationsIsLimited(t *testing.T) {
	n := configured(t, "[compile]\nmemory = \"64MiB\"\nprocessors = 1.5\n", options())
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "exit", "0"))
	wantError(t, b.create(), nil, "/app.wasm", "compiling it", "64 MiB")
	b.remove()
	if b, status := run(t, n, app(t, n, "hello.wasm"), args("/app.wasm")); status != 0 {
		t.Errorf("a small one: %d, %s", status, b.stderr)
	}
	nothingCompiles(t, n)
}

func TestABadTableIsAnErrorOfCreate(t *testing.T) {
	n := configured(t, "[cache]\nsize = \"1GiB\"\n[compile]\nat_once = 0x10000\n", options())
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	wantError(t, b.create(), nil, "config.toml", "compile.at_once: 65536: want 1 to 1024")
}

func tool(t *testing.T, n *node.Node, args ...string) (out, errs string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), n.Tool("containerd-shim-wazero-v1"), args...)
	cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+n.Address(), "CONTAINERD_NAMESPACE="+n.Namespace(), "GORACE=atexit_sleep_ms=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
	}
	return stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()
}

func TestAnImageIsCompiledAheadOfTime(t *testing.T) {
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	n := newNode(t, options(sendTo(c.Addr())...))
	ctx := n.Context(t.Context())
	files, err := n.Image(ctx, "example.com/files:latest", entrypoint, node.Regular("app.wasm", guest(t, "probe.wasm")))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := n.Artifact(ctx, "example.com/layer:latest", layered(wasip1, moduleOf(guest(t, "hello.wasm"))))
	if err != nil {
		t.Fatal(err)
	}
	before := traces(t, n)
	for _, how := range []string{"compiled in", "was there already"} {
		out, errs, status := tool(t, n, "compile", files.Name(), layer.Name())
		if status != 0 || strings.Count(out, how) != 2 || strings.Count(out, "sha256:") != 2 || errs != "" {
			t.Fatalf("status %d, %s%s", status, out, errs)
		}
	}
	leaves(t, n, before)
	nothingCompiles(t, n)
	views := 0
	if err := n.Client.SnapshotService("").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if strings.Contains(i.Name, "wazero-compile") {
			views++
		}
		return nil
	}); err != nil || views > 0 {
		t.Errorf("%d views are left, %v", views, err)
	}
	b, status := run(t, n, files, args("/app.wasm", "exit", "3"))
	if status != 3 {
		t.Errorf("exit status %d, %s", status, b.stderr)
	}
	if hit := trace(t, c, b.ID(), "module.compile")["module.compile"].Attrs["wasm.cache.hit"]; hit != "true" {
		t.Errorf("hit %q", hit)
	}
	var listed []struct {
		Digest, Path string
		Size         int64
		Used         time.Time
		Current      bool
		Removed      *bool
	}
	out, errs, code := tool(t, n, "cache", "list", "-json")
	if err := json.Unmarshal([]byte(out), &listed); err != nil || code != 0 || errs != "" || len(listed) != 2 {
		t.Fatalf("status %d, %v, %s%s", code, err, out, errs)
	}
	for _, e := range listed {
		if _, err := os.Stat(e.Path); err != nil || e.Size < 4096 || !e.Current || time.Since(e.Used) > time.Hour || !strings.HasPrefix(e.Digest, "sha256:") {
			t.Errorf("listed %+v, %v", e, err)
		}
	}
	if out, _, status := tool(t, n, "cache", "list"); status != 0 || !strings.HasPrefix(out, "DIGEST") || strings.Count(out, "sha256:") != 2 || !strings.Contains(out, " ago") {
		t.Errorf("status %d, %s", status, out)
	}
	if out, errs, status := tool(t, n, "cache", "clear", "-unused-for", "24h"); status != 0 || errs != "" || len(entriesOf(t, n)) != 2 {
		t.Errorf("status %d, %s%s", status, out, errs)
	}
	if out, errs, status := tool(t, n, "cache", "clear", listed[0].Digest); status != 0 || !strings.Contains(out, "removed") || len(entriesOf(t, n)) != 1 {
		t.Errorf("status %d, %s%s", status, out, errs)
	}
	if out, errs, status := tool(t, n, "cache", "clear", "-root", filepath.Join(n.Dir, "root")); status != 0 || len(entriesOf(t, n)) != 0 {
		t.Errorf("status %d, %s%s", status, out, errs)
	}
	if out, _, status := tool(t, n, "cache", "list", "-json"); status != 0 || strings.TrimSpace(out) != "[]" {
		t.Errorf("status %d, %s", status, out)
	}
}

func TestACommandSaysWhatIsWrong(t *testing.T) {
	n := newNode(t, options())
	text, err := n.Image(n.Context(t.Context()), "example.com/text:latest", entrypoint, node.Regular("app.wasm", []byte("hello")))
	if err != nil {
		t.Fatal(err)
	}
	before := traces(t, n)
	for _, tt := range []struct {
		args   []string
		status int
		says   []string
	}{
		{[]string{"compile"}, 2, []string{"no image is named", "usage:", "-namespace"}},
		{[]string{"compile", "-nonsense"}, 2, []string{"-nonsense", "usage:"}},
		{[]string{"compile", "-h"}, 0, []string{"usage:", "-snapshotter"}},
		{[]string{"cache"}, 2, []string{"usage:"}},
		{[]string{"cache", "burn"}, 2, []string{"usage:"}},
		{[]string{"cache", "list", "everything"}, 2, []string{"everything"}},
		{[]string{"cache", "clear", "abc"}, 2, []string{"abc", "digest"}},
		{[]string{"cache", "list", "-root", "relative"}, 2, []string{"relative", "absolute"}},
		{[]string{"cache", "list", "-address", "/nonexistent.sock"}, 1, []string{"/nonexistent.sock", "-root"}},
		{[]string{"compile", "example.com/none:latest"}, 1, []string{"example.com/none:latest", "not found"}},
		{[]string{"compile", text.Name()}, 1, []string{text.Name(), "/app.wasm"}},
		{[]string{"compile", "-entrypoint", "/none.wasm", text.Name()}, 1, []string{text.Name(), "/none.wasm"}},
		{[]string{"compile", "-snapshotter", "native", text.Name()}, 1, []string{text.Name(), "native"}},
	} {
		out, errs, status := tool(t, n, tt.args...)
		if status != tt.status || out != "" {
			t.Errorf("%v: status %d, want %d: %s", tt.args, status, tt.status, out)
		}
		for _, s := range tt.says {
			if !strings.Contains(errs, s) {
				t.Errorf("%v: says %q, not %q", tt.args, errs, s)
			}
		}
	}
	leaves(t, n, before)
	nothingCompiles(t, n)
}
