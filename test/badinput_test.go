package test

import (
	"archive/tar"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// What is wrong is said by ctr, names the file and the reason, and leaves nothing
// behind.
func TestBadModules(t *testing.T) {
	n := useNode(t)
	probe := guest(t, "probe.wasm")
	for _, c := range []struct {
		name string
		file node.File
		run  string
		want []string
	}{
		{"no such module", node.Regular("x", nil), "/app.wasm", []string{"/app.wasm", "no such file"}},
		{"not on the PATH", node.Regular("x", nil), "app", []string{`"app"`, "not found in PATH"}},
		{"not on the PATH, with a function", node.Regular("x", nil), "app#f", []string{`"app"`, "not found in PATH"}},
		{"an empty file", node.Regular("app.wasm", nil), "/app.wasm", []string{"/app.wasm", "empty"}},
		{"garbage", node.Regular("app.wasm", []byte("0123456789")), "/app.wasm", []string{"/app.wasm", "not a WebAssembly module"}},
		{"a truncated module", node.Regular("app.wasm", probe[:len(probe)/2]), "/app.wasm", []string{"/app.wasm", "not a valid WebAssembly module"}},
		{"a truncated header", node.Regular("app.wasm", probe[:6]), "/app.wasm", []string{"/app.wasm", "truncated"}},
		{"no _start", node.Regular("app.wasm", guest(t, "nostart.wasm")), "/app.wasm", []string{"/app.wasm", "_start"}},
		{"an import nobody provides", node.Regular("app.wasm", guest(t, "badimport.wasm")), "/app.wasm", []string{"/app.wasm", `"missing"`, `"env"`}},
		{"an import WASI does not have", node.Regular("app.wasm", guest(t, "badwasi.wasm")), "/app.wasm", []string{"/app.wasm", `"fd_fly"`}},
		{"an imported global", node.Regular("app.wasm", guest(t, "importedglobal.wasm")), "/app.wasm", []string{"/app.wasm", `"g"`, `"env"`}},
		{"a component", node.Regular("app.wasm", []byte("\x00asm\x0d\x00\x01\x00")), "/app.wasm", []string{"/app.wasm", "component", "preview 2"}},
		{"a directory", node.Regular("app.wasm/x", nil), "/app.wasm", []string{"/app.wasm", "is a directory"}},
		{"a link out of the rootfs", node.File{Header: tar.Header{Name: "app.wasm", Typeflag: tar.TypeSymlink, Linkname: filepath.Join(bin(), "guests/hello.wasm")}}, "/app.wasm", []string{"/app.wasm", "no such file"}},
		{"a relative link out of the rootfs", node.File{Header: tar.Header{Name: "app.wasm", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("../", 20) + bin()[1:] + "/guests/hello.wasm"}}, "/app.wasm", []string{"/app.wasm", "no such file"}},
		{"a link to itself", node.File{Header: tar.Header{Name: "app.wasm", Typeflag: tar.TypeSymlink, Linkname: "app.wasm"}}, "/app.wasm", []string{"/app.wasm", "symbolic links"}},
		{"a FIFO", node.File{Header: tar.Header{Name: "app.wasm", Typeflag: tar.TypeFifo, Mode: 0o644}}, "/app.wasm", []string{"/app.wasm", "not a regular file"}},
		{"no such function", node.Regular("f.wasm", guest(t, "functions.wasm")), "/f.wasm#three", []string{"/f.wasm", `"three"`}},
		{"a function that wants arguments", node.Regular("f.wasm", guest(t, "functions.wasm")), "/f.wasm#takes", []string{"/f.wasm", `"takes"`, "i32"}},
		{"a function without a name", node.Regular("f.wasm", guest(t, "functions.wasm")), "/f.wasm#", []string{"/f.wasm#", "no function"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := newID(t)
			img := image(t, n, "bad-"+id, c.file)
			before := traces(t, n)
			rec := record(t, n)
			out, err := n.Ctr(t.Context(), "run", "--rm", "--runtime="+node.Runtime, img.Name(), id, c.run).CombinedOutput()
			if err == nil {
				t.Fatalf("ran: %s", out)
			}
			for _, w := range c.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("ctr says %q, not %q", out, w)
				}
			}
			if text := strings.TrimSpace(string(out)); strings.Contains(text, "\n") || strings.HasSuffix(text, "invalid argument") {
				t.Errorf("ctr says %q: want one line that ends with the reason", text)
			}
			leaves(t, n, before)
			if got := names(rec.of(id, 0)); len(got) != 0 {
				t.Errorf("events %v, want none", got)
			}
		})
	}
}

func TestAModuleItsUserMayNotRead(t *testing.T) {
	n := useNode(t)
	secret := node.Regular("app.wasm", guest(t, "hello.wasm"))
	secret.Mode = 0o600
	b := container(t, n, image(t, n, "unreadable", secret), oci.WithUserID(1000), args("/app.wasm"))
	wantError(t, b.create(), nil, "/app.wasm", "uid 1000", "permission denied")
}

func TestBadSpecifications(t *testing.T) {
	n := useNode(t)
	img := app(t, n, "hello.wasm")
	change := func(f func(*oci.Spec)) oci.SpecOpts {
		return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			f(s)
			return nil
		}
	}
	for _, c := range []struct {
		name string
		opt  oci.SpecOpts
		want []string
	}{
		{"no process", change(func(s *oci.Spec) { s.Process = nil }), []string{"config.json", "process"}},
		{"no arguments", change(func(s *oci.Spec) { s.Process.Args = nil }), []string{"config.json", "process.args"}},
		{"a relative cwd", change(func(s *oci.Spec) { s.Process.Cwd = "x" }), []string{"config.json", "process.cwd"}},
		{"a relative mount", change(func(s *oci.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "x", Type: "tmpfs"}) }), []string{"config.json", "mount x"}},
		{"a mount of nothing", change(func(s *oci.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such", Options: []string{"bind"}})
		}), []string{"/x", "/no/such", "no such file"}},
		{"an unknown option", change(func(s *oci.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"sideways"}})
		}), []string{"/x", "sideways"}},
		{"an unknown propagation", change(func(s *oci.Spec) { s.Linux.RootfsPropagation = "sideways" }), []string{"rootfsPropagation", "sideways"}},
		{"an unknown file system", change(func(s *oci.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nofs"}) }), []string{"/x", "nofs"}},
		{"a user namespace", change(func(s *oci.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}), []string{"user namespace"}},
		{"a namespace that is none", change(func(s *oci.Spec) {
			for i := range s.Linux.Namespaces {
				if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
					s.Linux.Namespaces[i].Path = "/etc/hosts"
				}
			}
		}), []string{"/etc/hosts", "net"}},
		{"a host name for the host", change(func(s *oci.Spec) {
			s.Linux.Namespaces = s.Linux.Namespaces[:0]
			s.Hostname = "taken-over"
		}), []string{"hostname"}},
		{"an unknown limit", change(func(s *oci.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_LUCK"}} }), []string{"RLIMIT_LUCK"}},
		{"a cwd that is a file", change(func(s *oci.Spec) { s.Process.Cwd = "/app.wasm" }), []string{"/app.wasm", "not a directory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := traces(t, n)
			b := container(t, n, img, args("/app.wasm"), c.opt)
			wantError(t, b.create(), nil, c.want...)
			leaves(t, n, before)
		})
	}
	if name, _ := os.Hostname(); name == "taken-over" {
		t.Error("the host has a new name")
	}
}

// TestABundle breaks bundles between containerd and the shim: the specification
// is replaced on the way.
func TestBadBundles(t *testing.T) {
	n := newNode(t, options())
	for name, c := range map[string]struct {
		config string
		want   string
	}{
		"config.json is missing":   {"", "no such file"},
		"config.json is malformed": {`{"process": [`, "unexpected end"},
		"config.json is no object": {`[]`, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			id := newID(t)
			err := rawCreate(t, n, id, c.config)
			wantError(t, err, nil, "config.json", c.want)
		})
	}
}

func TestStdioThatDoesNotExist(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	b := container(t, n, app(t, n, "hello.wasm"), args("/app.wasm"))
	_, err := b.NewTask(b.ctx, func(string) (cio.IO, error) {
		return fixedIO{cio.Config{Stdout: "/no/such/fifo"}}, nil
	})
	wantError(t, err, nil, "stdout", "/no/such/fifo")
	leaves(t, n, before)
}

type fixedIO struct{ config cio.Config }

func (f fixedIO) Config() cio.Config { return f.config }
func (fixedIO) Cancel()              {}
func (fixedIO) Wait()                {}
func (fixedIO) Close() error         { return nil }

// A request that is given up at any point of Create: while `start` runs, which
// containerd then kills, and while the module is compiled.
func TestACreateThatIsCancelled(t *testing.T) {
	n := newNode(t, options())
	img := app(t, n, "esbuild.wasm") // takes seconds to compile
	before := traces(t, n)
	for _, after := range []time.Duration{5, 10, 15, 20, 25, 30, 50, 1000} {
		after *= time.Millisecond
		b := container(t, n, img, args("/app.wasm", "--version"))
		ctx, cancel := context.WithTimeout(b.ctx, after)
		_, err := b.NewTask(ctx, cio.NullIO)
		cancel()
		if err == nil {
			t.Fatal("created")
		}
	}
	// A `start` that is killed between making the socket and starting the shim
	// leaves the file; the next start of that id removes it.
	sockets, err := filepath.Glob(filepath.Join(n.Dir, "s", "*"))
	if err != nil {
		t.Fatal(err)
	}
	leaves(t, n, append(before, sockets...))
	for _, s := range sockets {
		if c, err := net.Dial("unix", s); err == nil {
			c.Close()
			t.Errorf("somebody serves %s", s)
		}
	}
	entries, err := os.ReadDir(filepath.Join(n.Dir, "root/io.containerd.wazero.v1/modules"))
	if err != nil || len(entries) != 0 {
		t.Errorf("the cache has %v, %v", entries, err)
	}
	if out, status := run(t, n, img, args("/app.wasm", "--version")); status != 0 || !strings.HasPrefix(out.stdout.String(), "0.") {
		t.Errorf("afterwards: exit status %d, %q", status, out.stdout)
	}
}

// A collector that is not there, refuses, hangs or talks nonsense changes nothing
// about a container.
func TestACollectorThatIsNoGood(t *testing.T) {
	need(t)
	serve := func(t *testing.T, handle func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		t.Cleanup(func() { l.Close(); <-done })
		go func() {
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				handle(c)
				t.Cleanup(func() { c.Close() })
			}
		}()
		return l.Addr().String()
	}
	for name, endpoint := range map[string]func(*testing.T) string{
		"refuses": func(*testing.T) string { return "http://127.0.0.1:1" },
		"hangs":   func(t *testing.T) string { return "grpc://" + serve(t, func(net.Conn) {}) },
		"answers garbage": func(t *testing.T) string {
			return "http://" + serve(t, func(c net.Conn) { fmt.Fprint(c, strings.Repeat("nonsense\x00", 1000)) })
		},
		"cannot be resolved": func(*testing.T) string { return "http://no.such.host.invalid:4317" },
		"is no URL":          func(*testing.T) string { return "::::" },
	} {
		t.Run(name, func(t *testing.T) {
			o := options()
			o.ShimEnv = []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + endpoint(t)}
			n := newNode(t, o)
			img := app(t, n, "probe.wasm")
			before := traces(t, n)
			began := time.Now()
			b, status := run(t, n, img, args("/app.wasm", "print", "x", "stderr", "y", "exit", "5"))
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
			if status != 5 || b.stdout.String() != "x\n" || b.stderr.String() != "y\n" {
				t.Errorf("exit status %d, stdout %q, stderr %q", status, b.stdout, b.stderr)
			}
			leaves(t, n, before)
		})
	}
}

// An error at the very end of Create, when the process is there already.
func TestAnErrorAtTheEndOfCreate(t *testing.T) {
	n := useNode(t)
	id := newID(t)
	before := traces(t, n)
	dir := bundle(t, id, minimal(t, id, "/app.wasm"), "hello.wasm")
	if err := os.Mkdir(filepath.Join(dir, "init.pid"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := start(t, n, id, dir)
	ctx := n.Context(t.Context())
	_, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: dir})
	wantError(t, err, nil, "pid file")
	// The same container can be created once the reason is gone.
	if err := os.Remove(filepath.Join(dir, "init.pid")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: dir}); err != nil {
		t.Error(err)
	}
	_, err = r.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: dir})
	wantError(t, errgrpc.ToNative(err), errdefs.ErrAlreadyExists, id)
	if _, err := r.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
		t.Error(err)
	}
	_, _ = r.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	leaves(t, n, before)
}
