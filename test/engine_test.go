package test

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/test/node"
)

const engine = "io.containerd.wazero.v1/engine"

func engineIs(name string) oci.SpecOpts { return oci.WithAnnotations(map[string]string{engine: name}) }

var interpreted = engineIs("interpreter")

func TestAContainerHasTheEngineThatItAsksFor(t *testing.T) {
	n, spans := tracedNode(t, options())
	img := app(t, n, "probe.wasm")
	compiled := func() int {
		entries, err := filepath.Glob(filepath.Join(n.Dir, "root/io.containerd.wazero.v1/modules/*-*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	variable := func(v string) oci.SpecOpts { return oci.WithEnv([]string{"WAZERO_ENGINE=" + v}) }
	for _, tt := range []struct {
		name    string
		opts    []oci.SpecOpts
		want    string
		entries int
	}{
		{"an annotation", []oci.SpecOpts{interpreted}, "interpreter", 0},
		{"a variable", []oci.SpecOpts{variable("interpreter")}, "interpreter", 0},
		{"a variable goes before an annotation", []oci.SpecOpts{engineIs("compiler"), variable("interpreter")}, "interpreter", 0},
		{"nothing", nil, "compiler", 1},
		{"the compiler by annotation", []oci.SpecOpts{engineIs("compiler")}, "compiler", 1},
		{"a variable that goes before an annotation", []oci.SpecOpts{interpreted, variable("compiler")}, "compiler", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, status := run(t, n, img, append(tt.opts, args("/app.wasm", "print", "x"))...)
			if status != 0 || b.stdout.String() != "x\n" || b.stderr.String() != "" {
				t.Errorf("status %d, %q, %q", status, b.stdout, b.stderr)
			}
			life := trace(t, spans, b.ID(), "module.resolve", "module.load", "module.run")
			if got := life["module.resolve"].Attrs["wasm.engine"]; got != tt.want {
				t.Errorf("traced as %q, want %q", got, tt.want)
			}
			if _, ok := life["module.compile"]; ok != (tt.want == "compiler") {
				t.Errorf("a stage that compiles: %v", ok)
			}
			if got := compiled(); got != tt.entries {
				t.Errorf("the cache has %d entries, want %d", got, tt.entries)
			}
		})
	}
}

func TestAnEngineThatThereIsNotIsAnErrorThatNamesIt(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	img := app(t, n, "hello.wasm")
	for name, opt := range map[string]oci.SpecOpts{engine: engineIs("jit"), "WAZERO_ENGINE": oci.WithEnv([]string{"WAZERO_ENGINE=jit"})} {
		b := container(t, n, img, args("/app.wasm"), opt)
		wantError(t, b.create(), errdefs.ErrInvalidArgument, name, "jit")
		b.remove()
	}
	b := idle(t, n)
	_, err := b.exec(t, "wrong", withEngine("Interpreter"), "/app.wasm", "print", "x")
	wantError(t, err, errdefs.ErrInvalidArgument, "WAZERO_ENGINE", "Interpreter")
	b.remove()
	leaves(t, n, before)
}

// withEngine has an exec ask for an engine, if it is one.
func withEngine(name string) func(*specs.Process) {
	return func(p *specs.Process) {
		if name != "" {
			p.Env = append(slices.Clone(p.Env), "WAZERO_ENGINE="+name)
		}
	}
}

func TestAnExecHasAnEngineOfItsOwn(t *testing.T) {
	n := useNode(t)
	for first, opts := range map[string][]oci.SpecOpts{"compiler": nil, "interpreter": {interpreted}} {
		b := idle(t, n, opts...)
		if got := executable(t, b.task.Pid()); (got > 0) != (first == "compiler") {
			t.Errorf("%s: %d bytes of its code are mapped", first, got)
		}
		for _, e := range []string{"", "compiler", "interpreter"} {
			x, status := b.runExec(t, "exec"+e, withEngine(e), "/app.wasm", "print", e)
			if status != 0 || x.stdout.String() != e+"\n" {
				t.Errorf("%s, exec with %q: status %d, %q, %q", first, e, status, x.stdout, x.stderr)
			}
		}
	}
}

// executable is how much memory of a process can be executed that is not its program's
// or the kernel's, bytes.
func executable(t *testing.T, pid uint32) (n uint64) {
	t.Helper()
	for _, line := range strings.Split(procFile(t, pid, "maps"), "\n") {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.Contains(f[1], "x") || len(f) > 5 && (f[5] == "/" || strings.HasPrefix(f[5], "[")) {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, err1 := strconv.ParseUint(from, 16, 64)
		b, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil {
			t.Fatal(line)
		}
		n += b - a
	}
	return n
}

// What a guest does wrong, and what is done to it, is the same as with compiled code.
func TestAnInterpretedGuest(t *testing.T) {
	n := useNode(t)
	for _, tt := range []struct {
		does, guest    string
		status         uint32
		stdout, stderr string
	}{
		{"exits with its code", "exit.wasm", 255, "", ""},
		{"traps", "trap.wasm", 134, "", "/app.wasm: wasm error: unreachable\nwasm stack trace:\n\t.$0()\n\t.$1()\n"},
		{"is a C program", "hello-c.wasm", 0, "hello\n", ""},
	} {
		t.Run(tt.does, func(t *testing.T) {
			b, status := run(t, n, app(t, n, tt.guest), interpreted, args("/app.wasm"))
			if status != tt.status || b.stdout.String() != tt.stdout || b.stderr.String() != tt.stderr {
				t.Errorf("status %d, %q, %q", status, b.stdout, b.stderr)
			}
		})
	}
	for _, guest := range []string{"recurse.wasm", "recurseindirect.wasm", "recursehost.wasm", "recursestart.wasm"} {
		t.Run("traps when it recurses: "+guest, func(t *testing.T) {
			b, status := run(t, n, app(t, n, guest), interpreted, args("/app.wasm"))
			if status != 134 || !strings.Contains(b.stderr.String(), "stack overflow") {
				t.Errorf("status %d, %q", status, b.stderr)
			}
		})
	}
	t.Run("ends by a signal while it spins", func(t *testing.T) {
		b := container(t, n, app(t, n, "spin.wasm"), interpreted, args("/app.wasm"))
		b.mustCreate(t)
		b.mustStart(t)
		if err := b.task.Kill(b.ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := b.exit(t); got != 143 {
			t.Errorf("status %d", got)
		}
	})
	t.Run("is refused memory over its limit", func(t *testing.T) {
		b, status := run(t, n, app(t, n, "limits-c.wasm"), interpreted, args("/app.wasm", "memory"), withMemory(64))
		if got := said(t, b.stdout.String(), "mib"); status != 0 || got < 30 || got > 64 {
			t.Errorf("status %d, %q: malloc gave %d MiB, want 30 to 64", status, b.stderr, got)
		}
	})
	t.Run("has no memory that can be executed", func(t *testing.T) {
		if got := executable(t, idle(t, n, interpreted).task.Pid()); got != 0 {
			t.Errorf("%d bytes", got)
		}
	})
}

func TestWhatIsWrongWithAnInterpretedModuleIsAnErrorOfCreate(t *testing.T) {
	n := useNode(t)
	before := traces(t, n)
	probe := guest(t, "probe.wasm")
	secret := node.Regular("app.wasm", guest(t, "hello.wasm"))
	secret.Mode = 0o600
	for name, tt := range map[string]struct {
		file node.File
		opts []oci.SpecOpts
		want []string
	}{
		"it is cut short":       {node.Regular("app.wasm", probe[:len(probe)/2]), nil, []string{"/app.wasm", "not a valid WebAssembly module"}},
		"an import":             {node.Regular("app.wasm", guest(t, "badimport.wasm")), nil, []string{"/app.wasm", `"missing"`, `"env"`}},
		"no entry point":        {node.Regular("app.wasm", guest(t, "nostart.wasm")), nil, []string{"/app.wasm", "_start"}},
		"its user":              {secret, []oci.SpecOpts{oci.WithUserID(1000)}, []string{"/app.wasm", "uid 1000", "permission denied"}},
		"too little to load it": {node.Regular("app.wasm", probe), []oci.SpecOpts{withMemory(16)}, []string{"memory limit", "16777216"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := container(t, n, image(t, n, "interpreted", tt.file), append(tt.opts, interpreted, args("/app.wasm"))...)
			wantError(t, b.create(), nil, tt.want...)
			b.remove()
		})
	}
	leaves(t, n, before)
}
