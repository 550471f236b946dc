package instance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/telemetry/relay"
)

// A guest is a module that is ready to be instantiated.
type guest struct {
	entry    module.Entry
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
	config   wazero.ModuleConfig
	args     []string
	environ  *environ
	observed *relay.Guest // nil when nothing of the guest's own is sent
	memory   *linearMemory
	stack    uint64 // bytes it may use
}

// A loaded module is one that an engine is ready to run.
type loaded struct {
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
	code     []byte // of the module that the engine was given
	machine  uint64 // bytes of machine code
	// fill puts into its memory what that has at first, if the engine does not; else nil.
	fill  func(*linearMemory) error
	close func() // what it was loaded from
}

// stale is what is wrong with an entry of the cache: the module was compiled before.
func stale(err error) error {
	return &Error{Text: fmt.Sprintf("compiled code: %v", err), Kind: StaleCache}
}

// loadEntry loads the entry that is [sandbox.Attached].
func loadEntry(ctx context.Context) (_ *loaded, err error) {
	files, err := readEntry(sandbox.Attached)
	if err != nil {
		return nil, stale(err)
	}
	defer func() {
		if err != nil {
			files.Close()
		}
	}()
	r, err := newRuntime(ctx, files.cache())
	if err != nil {
		return nil, &Error{Text: err.Error(), Kind: Internal}
	}
	compiled, err := r.CompileModule(ctx, files.module)
	if err != nil {
		return nil, stale(err)
	}
	return &loaded{r, compiled, files.module, files.header.Length, files.fill, func() { files.Close() }}, nil
}

// interpret loads a module that is not compiled, and closes it.
func interpret(ctx context.Context, f *os.File) (*loaded, error) {
	defer f.Close()
	code, err := readModule(f)
	if err != nil {
		return nil, err
	}
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithDebugInfoEnabled(false))
	compiled, err := r.CompileModule(ctx, code)
	if err != nil {
		return nil, invalid(err)
	}
	return &loaded{runtime: r, compiled: compiled, code: code, close: func() {}}, nil
}

// invalid is what an engine says of a module that is none.
func invalid(err error) error { return fmt.Errorf("not a valid WebAssembly module: %w", err) }

// newGuest makes a guest of the module that entry names, once it is loaded. A file of
// the container's must be one that the user may read that the process runs as.
// Everything that can be known to be wrong with a module before it runs is an error
// here.
//
// What the guest makes of its own goes to observed, which may be nil.
func newGuest(ctx context.Context, load func(context.Context) (*loaded, error), entry module.Entry, cfg Config, limit *MemoryLimit, observed *relay.Guest) (*guest, error) {
	budget := newBudget(limit)
	if err := mayRead(entry.Path); err != nil {
		return nil, err
	}
	l, err := load(ctx)
	if err != nil {
		return nil, err
	}
	defer l.close()
	r, code, compiled := l.runtime, l.code, l.compiled
	wasi := r.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(wasi)
	env := environment(cfg)
	env.export(wasi)
	_ = exportOnly(wasi, wasi_snapshot_preview1.ModuleName, compiled) // else there are more than it needs
	builders := []wazero.HostModuleBuilder{wasi}
	if importsFrom(compiled, observeModule) {
		_, most, err := module.Memory(code)
		if err != nil {
			return nil, err
		}
		b := r.NewHostModuleBuilder(observeModule)
		exportObserve(b, observed, most > 0)
		builders = append(builders, b)
	} else {
		observed.Close() // the shim need not listen
		observed = nil
	}
	hosts := make([]wazero.CompiledModule, len(builders))
	for i, b := range builders {
		if hosts[i], err = b.Compile(ctx); err != nil {
			return nil, &Error{Text: fmt.Sprintf("host functions: %v", err), Kind: Internal}
		}
	}
	if err := checkImports(code, compiled, hosts...); err != nil {
		return nil, err
	}
	if err := checkExport(compiled, entry.Func); err != nil {
		return nil, err
	}
	for _, host := range hosts {
		if _, err := r.InstantiateModule(ctx, host, wazero.NewModuleConfig().WithStartFunctions()); err != nil {
			return nil, &Error{Text: fmt.Sprintf("host functions: %v", err), Kind: Internal}
		}
	}
	memory, err := newMemory(code, l.machine, budget)
	if err != nil {
		return nil, err
	}
	if l.fill != nil {
		if err := l.fill(memory); err != nil {
			return nil, stale(err)
		}
	}
	return &guest{entry: entry, runtime: r, compiled: compiled, config: moduleConfig(entry, cfg), args: cfg.Args, environ: env, observed: observed, memory: memory, stack: budget.stack}, nil
}

// uid is asked for while that is allowed.
var uid = os.Getuid()

// mayRead tells whether a file of what is not yet the root may be read. The module
// of an image that is no file has no path.
func mayRead(path string) error {
	if path == "" {
		return nil
	}
	root, err := os.Open(sandbox.Rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := sandbox.OpenInRoot(int(root.Fd()), path, os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("as uid %d: %w", uid, errors.Unwrap(err))
	}
	return f.Close()
}

// importsFrom tells whether m imports a function of the named module.
func importsFrom(m wazero.CompiledModule, name string) bool {
	return slices.ContainsFunc(m.ImportedFunctions(), func(f api.FunctionDefinition) bool {
		from, _, _ := f.Import()
		return from == name
	})
}

// checkImports refuses a module that needs what none of the hosts provides.
func checkImports(code []byte, m wazero.CompiledModule, hosts ...wazero.CompiledModule) error {
	imports, err := module.Imports(code)
	if err != nil {
		return err
	}
	provided := map[string]map[string]api.FunctionDefinition{}
	for _, host := range hosts {
		provided[host.Name()] = host.ExportedFunctions()
	}
	for _, i := range imports {
		if i.Kind != module.FunctionImport || provided[i.Module] == nil {
			return fmt.Errorf("imports the %s %q of %q: only functions of %s and %s are provided", i.Kind, i.Name, i.Module, wasi_snapshot_preview1.ModuleName, observeModule)
		}
	}
	for _, f := range m.ImportedFunctions() {
		from, name, _ := f.Import()
		p, ok := provided[from][name]
		if !ok {
			return fmt.Errorf("imports the function %q, which %s does not have", name, from)
		}
		if signature(f) != signature(p) {
			return fmt.Errorf("imports the function %q of %s as %s: it is %s", name, from, signature(f), signature(p))
		}
	}
	return nil
}

// checkExport refuses a module without the function that is to be called.
func checkExport(m wazero.CompiledModule, name string) error {
	exports := m.ExportedFunctions()
	if name == "" {
		f, ok := exports[startFunction]
		if !ok {
			return fmt.Errorf("exports no function %s: not a WASI command (path#function calls another exported function)", startFunction)
		}
		if s := signature(f); s != "() -> ()" {
			return fmt.Errorf("exports %s as %s: want () -> ()", startFunction, s)
		}
		return nil
	}
	f, ok := exports[name]
	if !ok {
		return fmt.Errorf("exports no function %q", name)
	}
	if len(f.ParamTypes()) > 0 {
		return fmt.Errorf("function %q is %s: only one without parameters can be called", name, signature(f))
	}
	return nil
}

func signature(f api.FunctionDefinition) string {
	names := func(types []api.ValueType) string {
		s := make([]string, len(types))
		for i, t := range types {
			s[i] = api.ValueTypeName(t)
		}
		return "(" + strings.Join(s, ", ") + ")"
	}
	return names(f.ParamTypes()) + " -> " + names(f.ResultTypes())
}

const (
	startFunction      = "_start"      // of a WASI command
	initializeFunction = "_initialize" // of a WASI reactor
)

// moduleConfig is what the guest gets. wazero's defaults are a fake clock, a
// sleep that returns at once, deterministic randomness, no files and no output.
func moduleConfig(entry module.Entry, cfg Config) wazero.ModuleConfig {
	return wazero.NewModuleConfig().
		WithName("").
		WithStartFunctions().
		WithArgs(append([]string{entry.Argv0}, cfg.Args[1:]...)...).
		WithStdin(os.Stdin).WithStdout(os.Stdout).WithStderr(os.Stderr).
		WithFSConfig(wazero.NewFSConfig().WithDirMount("/", "/")).
		WithRandSource(rand.Reader).
		WithSysWalltime().WithSysNanotime().WithSysNanosleep().WithOsyield(runtime.Gosched)
}

// environment is the guest's: what it is given and, unless that is among it, PWD.
// Preview 1 has no other way to tell a guest its working directory.
func environment(cfg Config) *environ {
	for _, kv := range cfg.Env {
		if name, _, _ := strings.Cut(kv, "="); name == "PWD" {
			return newEnviron(cfg.Env)
		}
	}
	return newEnviron(append(slices.Clone(cfg.Env), "PWD="+cfg.Cwd))
}

// run instantiates the module and calls it, and returns the status to exit with.
// A trap is printed on the standard error stream.
func (g *guest) run(ctx context.Context, spans *relay.Recorder) int {
	began := time.Now()
	ctx = experimental.WithMemoryAllocator(ctx, g.memory.allocator())
	instance, err := g.runtime.InstantiateModule(ctx, g.compiled, g.config)
	spans.Record(relay.ModuleInstantiate, began, asFailure(err), nil)
	if err != nil {
		return g.exit(err)
	}
	name := g.entry.Func
	if name == "" {
		name = startFunction
	}
	// This span ends as the guest is entered: a long run shows at once.
	spans.Record(relay.ModuleStart, began, nil, map[string]any{relay.ModuleFunction: name})
	instead(g.args)
	entered := time.Now()
	err = call(ctx, instance, name, g.stack)
	said := map[string]any{relay.ExitCode: exitStatus(err)}
	if n := g.observed.Dropped(); n > 0 {
		said[relay.GuestDropped] = n
	}
	spans.Record(relay.ModuleRun, entered, asFailure(err), said)
	return g.exit(err)
}

func call(ctx context.Context, instance api.Module, name string, stack uint64) error {
	names := []string{name}
	if name != startFunction && name != initializeFunction && instance.ExportedFunction(initializeFunction) != nil {
		names = []string{initializeFunction, name}
	}
	for _, name := range names {
		f := instance.ExportedFunction(name)
		_ = setStack(f, stack) // or else it has the engine's, which takes more memory
		if _, err := f.Call(ctx); err != nil {
			return err
		}
	}
	return nil
}

// asFailure is nil for a guest that exited of itself: what status it chose says
// nothing about whether running it failed.
func asFailure(err error) error {
	var exit *sys.ExitError
	if err == nil || errors.As(err, &exit) {
		return nil
	}
	return trap{err}
}

// A trap is how a guest ends that has done what it may not.
type trap struct{ error }

func (t trap) Unwrap() error { return t.error }

// ErrorType is what a span calls it.
func (t trap) ErrorType() string { return "trap" }

func (g *guest) exit(err error) int {
	if failure := asFailure(err); failure != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", g.entry, failure)
	}
	return exitStatus(err)
}
