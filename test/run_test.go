package test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// out runs a guest that must exit with 0, and returns what it printed.
func out(t *testing.T, n *node.Node, name string, opts ...oci.SpecOpts) string {
	t.Helper()
	b, status := run(t, n, app(t, n, name), opts...)
	if status != 0 {
		t.Fatalf("exit status %d\nstdout: %s\nstderr: %s", status, b.stdout, b.stderr)
	}
	return b.stdout.String()
}

func TestTheMainJob(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	app(t, n, "probe.wasm")
	cmd := n.Ctr(t.Context(), "run", "--rm", "--runtime="+node.Runtime, "example.com/probe.wasm:latest", newID(t), "/app.wasm", "args", "exit", "7")
	got, err := cmd.Output()
	if want := "args: [\"/app.wasm\" \"args\" \"exit\" \"7\"]\n"; string(got) != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("ctr: %v, want exit status 7", err)
	}
	leaves(t, n, before)
}

func TestAGuestGets(t *testing.T) {
	n := useNode(t)
	t.Run("its arguments", func(t *testing.T) {
		if got, want := out(t, n, "probe.wasm", args("/app.wasm", "args", "print", "a b", "print", "ü\"'")), "args: [\"/app.wasm\" \"args\" \"print\" \"a b\" \"print\" \"ü\\\"'\"]\na b\nü\"'\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("its environment and nothing else", func(t *testing.T) {
		got := out(t, n, "probe.wasm", args("/app.wasm", "env"), oci.WithEnv([]string{"A=1", "B=x=y", "PATH=/bin"}))
		if want := "env: A=1\nenv: B=x=y\nenv: PATH=/bin\nenv: PWD=/\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("its working directory", func(t *testing.T) {
		if got, want := out(t, n, "probe.wasm", args("/app.wasm", "cwd", "write", "f", "x", "ls", "."), oci.WithProcessCwd("/work/dir")), "cwd: /work/dir\nentry: f\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("PWD as its environment sets it", func(t *testing.T) {
		got := out(t, n, "probe.wasm", args("/app.wasm", "env"), oci.WithEnv([]string{"PWD=/elsewhere"}), oci.WithProcessCwd("/work"))
		if !strings.Contains(got, "env: PWD=/elsewhere\n") || strings.Contains(got, "/work") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("its standard input, to the end", func(t *testing.T) {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "stdin"))
		b.mustCreate(t, true)
		b.mustStart(t)
		fmt.Fprint(b.stdin, "one\ntwo\n")
		b.stdin.Close()
		b.closeStdin(t)
		if status := b.exit(t); status != 0 {
			t.Errorf("exit status %d", status)
		}
		b.delete(t)
		if got, want := b.stdout.String(), "stdin: one\nstdin: two\nlines: 2\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("both output streams", func(t *testing.T) {
		b, _ := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "print", "o", "stderr", "e"))
		if b.stdout.String() != "o\n" || b.stderr.String() != "e\n" {
			t.Errorf("stdout %q, stderr %q", b.stdout, b.stderr)
		}
	})
	t.Run("the files of the image", func(t *testing.T) {
		img := image(t, n, "files", node.Regular("app.wasm", guest(t, "probe.wasm")), node.Regular("etc/motd", []byte("hi\n")))
		b, _ := run(t, n, img, args("/app.wasm", "cat", "/etc/motd", "write", "/etc/new", "made\n", "cat", "/etc/new", "ls", "/etc"))
		if got, want := b.stdout.String(), "hi\nmade\nentry: motd\nentry: new\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("its bind mounts, read-only where they are", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("host\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		mounts := oci.WithMounts([]specs.Mount{
			{Destination: "/rw", Type: "bind", Source: dir, Options: []string{"rbind", "rw"}},
			{Destination: "/ro", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}},
			{Destination: "/one/file", Type: "bind", Source: filepath.Join(dir, "f"), Options: []string{"bind", "ro"}},
			{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k", "mode=0777"}},
		})
		b, status := run(t, n, app(t, n, "probe.wasm"), mounts, args("/app.wasm", "cat", "/ro/f", "cat", "/one/file", "write", "/rw/g", "guest\n", "write", "/scratch/x", "y", "write", "/ro/h", "no"))
		if got := b.stdout.String(); status != 1 || !strings.HasPrefix(got, "host\nhost\nerror: ") || !strings.Contains(got, "/ro/h") {
			t.Errorf("exit status %d, printed %q", status, got)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "g")); string(data) != "guest\n" {
			t.Errorf("the host sees %q, %v", data, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "h")); err == nil {
			t.Error("written through a read-only mount")
		}
	})
	t.Run("a read-only root", func(t *testing.T) {
		b, status := run(t, n, app(t, n, "probe.wasm"), oci.WithRootFSReadonly(), args("/app.wasm", "write", "/f", "x"))
		if status != 1 || !strings.Contains(b.stdout.String(), "/f") {
			t.Errorf("exit status %d, printed %q", status, b.stdout)
		}
	})
	t.Run("/dev with the harmless five, no /proc", func(t *testing.T) {
		got := out(t, n, "probe.wasm", args("/app.wasm", "ls", "/dev", "write", "/dev/null", "x"))
		for _, d := range []string{"null", "zero", "full", "random", "urandom"} {
			if !strings.Contains(got, "entry: "+d+"\n") {
				t.Errorf("/dev has no %s: %q", d, got)
			}
		}
		b, status := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "cat", "/proc/self/status"))
		if status == 0 {
			t.Errorf("/proc/self/status: %q", b.stdout)
		}
	})
	t.Run("no procfs of the host by way of a bind mount", func(t *testing.T) {
		for source, path := range map[string]string{"/proc": "/host/1/environ", "/": "/host/proc/1/environ"} {
			b, status := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "cat", path),
				oci.WithMounts([]specs.Mount{{Destination: "/host", Type: "bind", Source: source, Options: []string{"rbind", "rw"}}}))
			if status == 0 {
				t.Errorf("%s of %s: %q", path, source, b.stdout)
			}
		}
	})
	t.Run("real clocks, real sleep, real randomness", func(t *testing.T) {
		got := out(t, n, "probe.wasm", args("/app.wasm", "now", "sleep", "50ms", "random", "random"))
		var now int64
		var slept bool
		var r1, r2 string
		if _, err := fmt.Sscanf(got, "now: %d\nslept: %t\nrandom: %s\nrandom: %s\n", &now, &slept, &r1, &r2); err != nil {
			t.Fatalf("%v: %q", err, got)
		}
		if d := time.Since(time.Unix(now, 0)); d < -2*time.Second || d > time.Minute {
			t.Errorf("the guest's clock is %v off", d)
		}
		again := out(t, n, "probe.wasm", args("/app.wasm", "random"))
		if !slept || r1 == r2 || strings.Contains(again, r1) {
			t.Errorf("slept %t, random %s, %s, then %q", slept, r1, r2, again)
		}
	})
	t.Run("memory to grow into", func(t *testing.T) {
		if got := out(t, n, "probe.wasm", args("/app.wasm", "grow", "64")); got != "grown: 64\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("its user", func(t *testing.T) {
		secret := node.Regular("secret", []byte("s"))
		secret.Mode = 0o600
		home := node.File{Header: tar.Header{Name: "home/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 1000, Gid: 1000}}
		img := image(t, n, "user", node.Regular("app.wasm", guest(t, "probe.wasm")), secret, home)
		b, status := run(t, n, img, oci.WithUserID(1000), args("/app.wasm", "write", "/home/f", "x", "ls", "/home", "cat", "/secret"))
		if got := b.stdout.String(); status != 1 || !strings.HasPrefix(got, "entry: f\nerror:") {
			t.Errorf("exit status %d, printed %q", status, got)
		}
	})
}

func TestEntryPoint(t *testing.T) {
	n := useNode(t)
	probe, functions := guest(t, "probe.wasm"), guest(t, "functions.wasm")
	img, err := n.Image(t.Context(), "example.com/entry:latest", ocispec.ImageConfig{},
		node.Regular("bin/tool", probe), node.Regular("work/sub/tool.wasm", probe),
		node.Regular("usr/bin/tool/decoy", nil), // a directory on the PATH, passed over
		node.Regular("f.wasm", functions), node.Regular("literal#two", probe),
		node.File{Header: tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/bin/tool"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		status uint32
		argv0  string
		opts   []oci.SpecOpts
	}{
		{"by absolute path", []string{"/bin/tool", "args"}, 0, "/bin/tool", nil},
		{"relative to the cwd", []string{"sub/tool.wasm", "args"}, 0, "sub/tool.wasm", []oci.SpecOpts{oci.WithProcessCwd("/work")}},
		{"on the PATH", []string{"tool", "args"}, 0, "tool", []oci.SpecOpts{oci.WithEnv([]string{"PATH=/nowhere:/usr/bin:/bin"})}},
		{"by symbolic link", []string{"/link", "args"}, 0, "/link", nil},
		{"a function", []string{"/f.wasm#two"}, 42, "", nil},
		{"_start", []string{"/f.wasm"}, 10, "", nil},
		{"_start by name", []string{"/f.wasm#_start"}, 10, "", nil},
		{"a function with a result", []string{"/f.wasm#returns"}, 0, "", nil},
		{"a file literally so named", []string{"/literal#two", "args"}, 0, "/literal#two", nil},
		{"argv[0] loses the function", []string{"/bin/tool#_start", "args"}, 0, "/bin/tool", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, status := run(t, n, img, append(c.opts, args(c.args...))...)
			if status != c.status {
				t.Errorf("exit status %d, want %d\n%s%s", status, c.status, b.stdout, b.stderr)
			}
			if want := fmt.Sprintf("args: [%q", c.argv0); c.argv0 != "" && !strings.HasPrefix(b.stdout.String(), want) {
				t.Errorf("printed %q, want %q", b.stdout, want)
			}
		})
	}
}

func TestExitStatus(t *testing.T) {
	n := useNode(t)
	for _, want := range []uint32{0, 1, 42, 255} {
		if _, got := run(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "exit", strconv.Itoa(int(want)))); got != want {
			t.Errorf("exit status %d, want %d", got, want)
		}
	}
	t.Run("one that does not fit is not taken for success", func(t *testing.T) {
		if _, got := run(t, n, app(t, n, "exit.wasm"), args("/app.wasm")); got != 255 {
			t.Errorf("exit status %d, want 255", got)
		}
	})
}

func TestATrap(t *testing.T) {
	n := useNode(t)
	for name, want := range map[string]string{
		"trap.wasm":    "/app.wasm: wasm error: unreachable\nwasm stack trace:\n\t.$0()\n\t.$1()\n",
		"recurse.wasm": "/app.wasm: stack overflow\n", // wazero has no trace of this one
	} {
		b, status := run(t, n, app(t, n, name), args("/app.wasm"))
		if status != 134 || b.stderr.String() != want {
			t.Errorf("%s: exit status %d, stderr %q", name, status, b.stderr)
		}
		if b.stdout.String() != "" {
			t.Errorf("%s: stdout %q", name, b.stdout)
		}
	}
}

func TestACProgram(t *testing.T) {
	n := useNode(t)
	b, status := run(t, n, app(t, n, "files-c.wasm"), args("/app.wasm", "/data"),
		oci.WithMounts([]specs.Mount{{Destination: "/data", Type: "tmpfs", Source: "tmpfs"}}))
	if got, want := b.stdout.String(), "read: first\nread: second\nsize: 13\nentry: two\n"; got != want || status != 3 {
		t.Errorf("exit status %d, printed %q, want %q", status, got, want)
	}
}

// esbuild is a program that nobody here wrote: a bundler of JavaScript, from its
// Go module. The data is TypeScript of its own sources, and what it makes of it
// is compared with what it makes of it on Linux.
func TestAProgramNobodyHereWrote(t *testing.T) {
	n := useNode(t)
	out, err := exec.Command("go", "list", "-C", "../tools/esbuild", "-m", "-f", "{{.Dir}}", "github.com/evanw/esbuild").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(out)), "lib")
	flags := []string{"npm/browser.ts", "--bundle", "--minify", "--sourcemap=inline", "--define:ESBUILD_VERSION=\"x\"", "--format=esm", "--external:fs", "--external:*.wasm"}
	native := exec.Command(filepath.Join(bin(), "guests", "esbuild"), flags...)
	native.Dir = source
	var stderr bytes.Buffer
	native.Stderr = &stderr
	want, err := native.Output()
	if err != nil || len(want) < 10_000 {
		t.Fatalf("%v: %d bytes\n%s", err, len(want), &stderr)
	}
	b, status := run(t, n, app(t, n, "esbuild.wasm"), oci.WithProcessCwd("/src"), args(append([]string{"/app.wasm"}, flags...)...),
		oci.WithMounts([]specs.Mount{{Destination: "/src", Type: "bind", Source: source, Options: []string{"rbind", "ro"}}}))
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, b.stderr)
	}
	if got := b.stdout.String(); got != string(want) {
		t.Errorf("%d bytes that are not the %d of the native program", len(got), len(want))
	}
}

func TestTheModuleIsCompiledOnce(t *testing.T) {
	n := newNode(t, options())
	img := app(t, n, "probe.wasm")
	// At the same time, then once more.
	boxes := make([]*box, 3)
	for i := range boxes {
		boxes[i] = container(t, n, img, args("/app.wasm", "print", "x"))
	}
	errs := make(chan error)
	for _, b := range boxes {
		go func() { errs <- b.create() }()
	}
	for range boxes {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	run(t, n, img, args("/app.wasm", "print", "x"))
	dir := filepath.Join(n.Dir, "root/io.containerd.wazero.v1/modules")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("the cache has %v, %v: want one entry", entries, err)
	}
	t.Run("and the cache is root's alone", func(t *testing.T) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				if info, _ := d.Info(); info.Mode().Perm() != 0o444 {
					t.Errorf("%s has mode %v", path, info.Mode())
				}
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	for broken, damage := range map[string]func(path string) error{
		"cut short":                      func(path string) error { return os.Truncate(path, 100) },
		"empty":                          func(path string) error { return os.Truncate(path, 0) },
		"longer":                         func(path string) error { return appendTo(path, "x") },
		"missing":                        os.Remove,
		"a flipped bit at the beginning": func(path string) error { return flip(path, 20) },
		"a flipped bit in its middle":    func(path string) error { return flip(path, -2) },
		"a flipped bit at the end":       func(path string) error { return flip(path, -1) },
	} {
		for _, name := range []string{"module", "code"} {
			t.Run(fmt.Sprintf("an entry is compiled anew with its %s %s", name, broken), func(t *testing.T) {
				file := filepath.Join(dir, entries[0].Name(), "code", name)
				before, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := damage(file); err != nil {
					t.Fatal(err)
				}
				if b, status := run(t, n, img, args("/app.wasm", "print", "x")); status != 0 || b.stdout.String() != "x\n" {
					t.Errorf("exit status %d, %q, %q", status, b.stdout, b.stderr)
				}
				if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) {
					t.Errorf("the file is not as it was before, %v", err)
				}
			})
		}
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// flip changes a bit of a file: of the byte at an offset, of the last one (-1), or of
// the one in the middle (-2).
func flip(path string, at int) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	switch at {
	case -1:
		at = len(b) - 1
	case -2:
		at = len(b) / 2
	}
	b[at] ^= 4
	// Another file: pages of this one may be in use.
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o444)
}

func TestTheInstanceProcess(t *testing.T) {
	n := useNode(t)
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"), oci.WithUserID(1000), oci.WithEnv([]string{"SECRET=1"}))
	b.mustCreate(t)
	proc := fmt.Sprintf("/proc/%d/", b.task.Pid())
	read := func(name string) string {
		data, err := os.ReadFile(proc + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	check := func(t *testing.T) {
		threads, err := filepath.Glob(proc + "task/*/status")
		if err != nil || len(threads) == 0 {
			t.Fatal(threads, err)
		}
		for _, thread := range threads {
			data, err := os.ReadFile(thread)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{
				"\nUid:\t1000\t1000\t1000\t1000\n", "\nGid:\t0\t0\t0\t0\n", "\nNoNewPrivs:\t1\n",
				"\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n", "\nCapAmb:\t0000000000000000\n", "\nCapBnd:\t000000000000000e\n",
			} {
				if !strings.Contains(string(data), want) {
					t.Errorf("%s: no %q in\n%s", thread, want, data)
				}
			}
		}
		for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
			own, _ := os.Readlink("/proc/self/ns/" + ns)
			theirs, _ := os.Readlink(proc + "ns/" + ns)
			if own == theirs || theirs == "" {
				t.Errorf("%s namespace: %s, the host's is %s", ns, theirs, own)
			}
		}
		mounts := read("mountinfo")
		if strings.Contains(mounts, " - proc ") || strings.Contains(mounts, " - sysfs ") || strings.Contains(mounts, " - cgroup") || strings.Contains(mounts, "staging") {
			t.Errorf("mounts:\n%s", mounts)
		}
		for _, e := range strings.Split(strings.Trim(read("environ"), "\x00"), "\x00") {
			if e != "" && !strings.HasPrefix(e, "TRACECONTEXT={") {
				t.Errorf("environment: %s", e)
			}
		}
		fds, err := filepath.Glob(proc + "fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue
			}
			if strings.HasPrefix(target, "/") && !strings.HasPrefix(target, filepath.Join(n.Dir, "fifo")) && target != "/dev/null" && target != "/" {
				t.Errorf("descriptor %s: %s", filepath.Base(fd), target)
			}
		}
		if root, err := os.Readlink(proc + "root"); err != nil || root != "/" {
			t.Errorf("root %s, %v", root, err)
		}
		if _, err := os.Stat(proc + "root/app.wasm"); err != nil {
			t.Errorf("the root is not the container's: %v", err)
		}
		if !strings.Contains(read("cgroup"), "/"+node.Namespace+"/"+b.ID()) {
			t.Errorf("cgroup:\n%s", read("cgroup"))
		}
	}
	t.Run("while created", check)
	b.mustStart(t)
	time.Sleep(200 * time.Millisecond)
	t.Run("while running", check)
	t.Run("as root keeps what a guest can use", func(t *testing.T) {
		b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"))
		b.mustCreate(t)
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.task.Pid()))
		if err != nil || !strings.Contains(string(data), "\nCapEff:\t000000000000000a\n") { // DAC_OVERRIDE, FOWNER
			t.Errorf("%v\n%s", err, data)
		}
	})
}

func TestLimits(t *testing.T) {
	n := useNode(t)
	adj := 123
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"), oci.WithMemoryLimit(200<<20), oci.WithPidsLimit(99),
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			s.Process.OOMScoreAdj = &adj
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 88}}
			s.Hostname = "wasmhost"
			return nil
		})
	b.mustCreate(t)
	pid := b.task.Pid()
	if data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); string(data) != "123\n" {
		t.Errorf("oom_score_adj %q", data)
	}
	if data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)); !strings.Contains(string(data), "Max open files            77                   88 ") {
		t.Errorf("limits:\n%s", data)
	}
	if out, err := exec.Command("nsenter", "-t", strconv.Itoa(int(pid)), "-u", "hostname").Output(); string(out) != "wasmhost\n" {
		t.Errorf("hostname %q, %v", out, err)
	}
	found := 0
	for _, p := range []string{"/sys/fs/cgroup/memory/%s/memory.limit_in_bytes", "/sys/fs/cgroup/%s/memory.max"} {
		if data, err := os.ReadFile(fmt.Sprintf(p, node.Namespace+"/"+b.ID())); err == nil {
			found++
			if string(data) != "209715200\n" {
				t.Errorf("memory limit %q", data)
			}
		}
	}
	if found != 1 {
		t.Error("no memory cgroup")
	}
}
