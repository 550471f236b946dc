package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

// neighbour starts a Linux container that looks at every process in its pid
// namespace, which others are to share: see guests/c/neighbour.c. It is root with
// the capabilities that containers have by default, under containerd's own shim.
func neighbour(t *testing.T, n *node.Node, opts []oci.SpecOpts, what ...string) *box {
	t.Helper()
	img := image(t, n, "neighbour", node.Program("neighbour", guest(t, "neighbour-static")))
	ctx := n.Context(t.Context())
	id := newID(t)
	c, err := n.Client.NewContainer(ctx, id, containerd.WithImage(img), containerd.WithNewSnapshot(id, img),
		containerd.WithRuntime("io.containerd.runc.v2", nil),
		containerd.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(img), args(append([]string{"/neighbour"}, what...)...)}, opts...)...))
	if err != nil {
		t.Fatal(err)
	}
	b := &box{Container: c, stdout: &buffer{}, stderr: &buffer{}, ctx: ctx, node: n}
	t.Cleanup(b.remove)
	b.mustCreate(t)
	b.mustStart(t)
	eventually(t, "the neighbour is ready", func() bool { return strings.HasPrefix(b.stdout.String(), "ready\n") })
	return b
}

// found are the lines of a neighbour's output that begin with the word.
func found(b *box, word string) (lines []string) {
	for _, line := range strings.Split(b.stdout.String(), "\n") {
		if strings.HasPrefix(line, word+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// A root process in the pod opens the program of a module's process and, once nobody
// runs it, writes to it: CVE-2019-5736.
func TestANeighbourCannotWriteToTheShimsBinary(t *testing.T) {
	need(t)
	opts := options()
	shim := filepath.Join(hostDir(t), "containerd-shim-wazero-v1")
	// The ordinary one, which is what instance processes run under the race detector too.
	data, err := os.ReadFile(filepath.Join(bin(), filepath.Base(shim)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shim, data, 0o755); err != nil {
		t.Fatal(err)
	}
	opts.Shim = filepath.Dir(shim) // should it be written to
	n := newNode(t, opts)
	attacker := neighbour(t, n, nil, "exe")
	b := container(t, n, app(t, n, "probe.wasm"), args("/app.wasm", "idle"), joining(attacker.task.Pid(), specs.PIDNamespace))
	b.mustCreate(t)
	b.mustStart(t)
	e, err := b.exec(t, "e", nil, "/app.wasm", "idle")
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []uint32{b.task.Pid(), e.Pid()} {
		if got := strings.TrimSpace(procFile(t, pid, "comm")); got != "wazero-instance" {
			t.Errorf("its process is called %q", got)
		}
	}
	if err := b.task.Kill(b.ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.exit(t)
	b.remove() // and its shim, which runs the binary too
	eventually(t, "the neighbour has tried both", func() bool { return len(found(attacker, "WRITABLE"))+len(found(attacker, "refused")) >= 2 })
	if w := found(attacker, "WRITABLE"); len(w) > 0 {
		t.Errorf("the neighbour could have written to the binary: %q", w)
	}
	for _, line := range found(attacker, "refused") {
		if !strings.HasSuffix(line, "Read-only file system") {
			t.Errorf("%q: want it refused for good", line)
		}
	}
}

// ptracing is one more capability, which lets a neighbour look at processes that
// have more rights than it.
var ptracing = oci.WithAddedCapabilities([]string{"CAP_SYS_PTRACE"})

// A process that has just been born, or is being walled in, is in sight of a
// neighbour like any other.
func TestANeighbourFindsNoFileOfTheHostThroughAProcess(t *testing.T) {
	n := newNode(t, options())
	file := filepath.Join(hostDir(t), "secret")
	if err := os.WriteFile(file, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	img := app(t, n, "probe.wasm")
	for name, c := range map[string]struct {
		opts  []oci.SpecOpts
		hooks bool
		named string // whose finds count; a hook is a program of the host: who may trace it may look
	}{
		"default":                       {nil, true, ""},
		"with CAP_SYS_PTRACE":           {[]oci.SpecOpts{ptracing}, false, ""},
		"with CAP_SYS_PTRACE and hooks": {[]oci.SpecOpts{ptracing}, true, " wazero-"},
	} {
		t.Run(name, func(t *testing.T) {
			attacker := neighbour(t, n, c.opts, "files", file)
			group := oci.WithAnnotations(map[string]string{groupAnnotation: fmt.Sprintf("neighbour-%d", rand.Uint32())})
			hook := specOf(func(s *oci.Spec) {
				s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 0.02"}}}}
			})
			for i := range 12 {
				opts := []oci.SpecOpts{args("/app.wasm", "sleep", "20ms"), joining(attacker.task.Pid(), specs.PIDNamespace), group}
				if i%3 == 2 && c.hooks {
					opts = append(opts, hook)
				}
				b := container(t, n, img, opts...)
				b.mustCreate(t)
				if i%3 == 1 {
					e, err := b.exec(t, "e", nil, "/app.wasm")
					if err != nil {
						t.Fatal(err)
					}
					if err := e.Start(b.ctx); err != nil {
						t.Fatal(err)
					}
					e.finish(t, b.ctx)
				}
				b.mustStart(t)
				b.exit(t)
				b.delete(t)
			}
			if looked := found(attacker, "looked"); len(looked) < 6 {
				t.Errorf("the neighbour has looked at no more than %q", looked)
			}
			f := slices.DeleteFunc(found(attacker, "FOUND"), func(line string) bool { return !strings.Contains(line, c.named) })
			if len(f) > 0 {
				t.Errorf("the neighbour has found the file of the host: %q", slices.Compact(f)[:min(len(f), 8)])
			}
		})
	}
}

// Until a process executes the program it has the shim's memory, and the environment
// in it. It has more rights until then than a neighbour by default; one with
// CAP_SYS_PTRACE, and no user namespace, may look at it.
func TestANeighbourFindsNothingOfTheShimInAProcess(t *testing.T) {
	n := newNode(t, options(secretName+"="+secretValue))
	img := app(t, n, "probe.wasm")
	attacker := neighbour(t, n, nil, "memory", secretValue)
	group := oci.WithAnnotations(map[string]string{groupAnnotation: fmt.Sprintf("neighbour-%d", rand.Uint32())})
	for i := range 20 {
		b := container(t, n, img, args("/app.wasm"), joining(attacker.task.Pid(), specs.PIDNamespace), group,
			specOf(func(s *oci.Spec) { s.Process.User = specs.User{UID: uint32(i % 2)} }))
		b.mustCreate(t)
		b.mustStart(t)
		b.exit(t)
		b.delete(t)
	}
	if len(found(attacker, "stopped")) == 0 {
		t.Error("the neighbour has looked at nothing")
	}
	if f := found(attacker, "SECRET"); len(f) > 0 {
		t.Errorf("the neighbour has found the shim's memory: %q", f)
	}
}
