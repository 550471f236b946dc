package instance

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// Value types and sections of the binary format.
const (
	i32, i64, f32, f64 = 0x7f, 0x7e, 0x7d, 0x7c

	typeSection, importSection, functionSection      = 1, 2, 3
	memorySection, exportSection, codeSection   byte = 5, 7, 10

	end, unreachable, call1, i32const = 0x0b, 0x00, 0x10, 0x41
)

func section(id byte, entries ...[]byte) []byte {
	body := slices.Concat(binary.AppendUvarint(nil, uint64(len(entries))), slices.Concat(entries...))
	return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
}

func str(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }

func functionType(params, results string) []byte {
	return slices.Concat([]byte{0x60}, str(params), str(results))
}

func wasm(sections ...[]byte) []byte {
	return append([]byte("\x00asm\x01\x00\x00\x00"), slices.Concat(sections...)...)
}

// exporting is a module with one function of the given type and code, under name.
func exporting(name string, params, results string, code ...byte) []byte {
	body := append([]byte{0}, append(code, end)...)
	return wasm(
		section(typeSection, functionType(params, results)),
		section(functionSection, []byte{0}),
		section(exportSection, append(str(name), 0, 0)),
		section(codeSection, append([]byte{byte(len(body))}, body...)),
	)
}

// importing is a module with one import.
func importing(from, name string, desc ...byte) []byte {
	return wasm(
		section(typeSection, functionType(string([]byte{i32}), "")),
		section(importSection, slices.Concat(str(from), str(name), desc)),
	)
}

func newTestRuntime(t *testing.T) wazero.Runtime {
	t.Helper()
	r := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigInterpreter())
	t.Cleanup(func() { r.Close(t.Context()) })
	return r
}

func compiledFor(t *testing.T, r wazero.Runtime, code []byte) wazero.CompiledModule {
	t.Helper()
	m, err := r.CompileModule(t.Context(), code)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestASignatureNamesParametersAndResults(t *testing.T) {
	r := newTestRuntime(t)
	types := func(t ...byte) string { return string(t) }
	for _, tt := range []struct{ params, results, want string }{
		{"", "", "() -> ()"},
		{types(i32), "", "(i32) -> ()"},
		{"", types(i64), "() -> (i64)"},
		{types(i32, i64, f32, f64), types(f64, i32), "(i32, i64, f32, f64) -> (f64, i32)"},
		{types(0x6f), "", "(externref) -> ()"},
	} {
		m := compiledFor(t, r, exporting("f", tt.params, tt.results, unreachable))
		if got := signature(m.ExportedFunctions()["f"]); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

func TestOnlyAFunctionThatCanBeCalledIsAnEntryPoint(t *testing.T) {
	r := newTestRuntime(t)
	param := string([]byte{i32})
	for _, tt := range []struct {
		name, export    string
		params, results string
		call            string
		good            bool
	}{
		{"a command", "_start", "", "", "", true},
		{"a command without _start", "main", "", "", "", false},
		{"_start with a parameter", "_start", param, "", "", false},
		{"_start with a result", "_start", "", param, "", false},
		{"a function", "add", "", "", "add", true},
		{"a function with a result", "add", "", param, "add", true},
		{"a function with a parameter", "add", param, "", "add", false},
		{"a function that is not there", "add", "", "", "sub", false},
		{"_start by name", "_start", "", "", "_start", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := compiledFor(t, r, exporting(tt.export, tt.params, tt.results, unreachable))
			if err := checkExport(m, tt.call); (err == nil) != tt.good {
				t.Errorf("got %v, want good: %v", err, tt.good)
			}
		})
	}
}

func TestAnExportedMemoryIsNoEntryPoint(t *testing.T) {
	r := newTestRuntime(t)
	m := compiledFor(t, r, wasm(
		section(memorySection, []byte{0, 1}),
		section(exportSection, append(str("_start"), 2, 0)),
	))
	for _, name := range []string{"", "_start"} {
		if err := checkExport(m, name); err == nil {
			t.Errorf("%q: got no error", name)
		}
	}
}

func TestOnlyFunctionsOfWASIAreProvided(t *testing.T) {
	r := newTestRuntime(t)
	const wasi = wasi_snapshot_preview1.ModuleName
	for _, tt := range []struct {
		name string
		code []byte
		good bool
	}{
		{"no imports", wasm(), true},
		{"proc_exit", importing(wasi, "proc_exit", 0, 0), true},
		{"a function of WASI with another signature", importing(wasi, "sched_yield", 0, 0), false},
		{"a function that WASI does not have", importing(wasi, "sock_listen", 0, 0), false},
		{"a function of another module", importing("env", "proc_exit", 0, 0), false},
		{"a function of the next preview", importing("wasi:cli/exit@0.2.0", "exit", 0, 0), false},
		{"a memory", importing("env", "memory", 2, 0, 1), false},
		{"a memory of WASI", importing(wasi, "memory", 2, 0, 1), false},
		{"a table", importing("env", "table", 1, 0x70, 0, 1), false},
		{"a global", importing("env", "global", 3, i32, 0), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := compiledFor(t, r, tt.code)
			err := checkImports(tt.code, m, wasiFor(t, r, m))
			if (err == nil) != tt.good {
				t.Errorf("got %v, want good: %v", err, tt.good)
			}
		})
	}
}

// wasiFor is the part of WASI that m needs.
func wasiFor(t *testing.T, r wazero.Runtime, m wazero.CompiledModule) wazero.CompiledModule {
	t.Helper()
	b := r.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	if err := exportOnly(b, wasi_snapshot_preview1.ModuleName, m); err != nil {
		t.Fatal(err)
	}
	host, err := b.Compile(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// That it can be is also what holds when wazero is updated.
func TestOfWASIOnlyWhatAModuleImportsIsCompiled(t *testing.T) {
	r := newTestRuntime(t)
	for _, tt := range []struct {
		code []byte
		want []string
	}{
		{wasm(), nil},
		{importing("env", "proc_exit", 0, 0), nil},
		{importing(wasi_snapshot_preview1.ModuleName, "proc_exit", 0, 0), []string{"proc_exit"}},
	} {
		host := wasiFor(t, r, compiledFor(t, r, tt.code))
		if got := slices.Sorted(maps.Keys(host.ExportedFunctions())); !slices.Equal(got, tt.want) {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// exiting is a module that calls proc_exit with the numbers of its functions,
// from 1 on.
func exiting(names ...string) []byte {
	var functions, exports, bodies [][]byte
	for i, name := range names {
		functions = append(functions, []byte{1})
		exports = append(exports, append(str(name), 0, byte(i+1)))
		body := []byte{0, i32const, byte(i + 1), call1, 0, end}
		bodies = append(bodies, append([]byte{byte(len(body))}, body...))
	}
	return wasm(
		section(typeSection, functionType(string([]byte{i32}), ""), functionType("", "")),
		section(importSection, slices.Concat(str(wasi_snapshot_preview1.ModuleName), str("proc_exit"), []byte{0, 0})),
		section(functionSection, functions...),
		section(exportSection, exports...),
		section(codeSection, bodies...),
	)
}

func TestAReactorIsInitialisedBeforeItsFunctionIsCalled(t *testing.T) {
	for _, tt := range []struct {
		name    string
		exports []string
		call    string
		want    int // the number of the export that was called first
	}{
		{"_start of a command", []string{"_start"}, "_start", 1},
		{"_start is not preceded by _initialize", []string{"_initialize", "_start"}, "_start", 2},
		{"a function of a command", []string{"_start", "f"}, "f", 2},
		{"a function of a reactor", []string{"f", "_initialize"}, "f", 2},
		{"_initialize itself", []string{"_initialize"}, "_initialize", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newTestRuntime(t)
			if _, err := wasi_snapshot_preview1.Instantiate(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			m, err := r.InstantiateModule(t.Context(), compiledFor(t, r, exiting(tt.exports...)), wazero.NewModuleConfig().WithStartFunctions())
			if err != nil {
				t.Fatal(err)
			}
			if got := exitStatus(call(t.Context(), m, tt.call, maxStack)); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestTheStatusOfARunIsTheGuests(t *testing.T) {
	for _, tt := range []struct {
		name string
		code []byte
		want int
	}{
		{"a return", exporting("_start", "", ""), 0},
		{"an exit", exiting("_start"), 1},
		{"a trap", exporting("_start", "", "", unreachable), trapStatus},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newTestRuntime(t)
			if _, err := wasi_snapshot_preview1.Instantiate(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			g := &guest{
				entry: module.Entry{Path: "/main.wasm"}, runtime: r,
				compiled: compiledFor(t, r, tt.code),
				config:   moduleConfig(module.Entry{Argv0: "main.wasm"}, Config{Args: []string{"main.wasm"}}),
			}
			if got := g.run(t.Context(), nil); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestAnInterruptedRunIsNoSuccess(t *testing.T) {
	for _, code := range []uint32{sys.ExitCodeContextCanceled, sys.ExitCodeDeadlineExceeded} {
		if got, want := exitStatus(sys.NewExitError(code)), 255; got != want {
			t.Errorf("got %d, want %d", got, want)
		}
	}
}
