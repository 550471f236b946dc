package instance

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/module"
)

// An asWritten engine compiles every module as it is given, and has no cache.
func asWritten(t *testing.T) instantiator {
	r := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigCompiler().WithDebugInfoEnabled(false))
	t.Cleanup(func() { r.Close(context.Background()) })
	return func(code []byte, config wazero.ModuleConfig) (api.Module, error) {
		m, err := r.CompileModule(t.Context(), code)
		if err != nil {
			return nil, errNotCompiled
		}
		return r.InstantiateModule(t.Context(), m, config)
	}
}

// An instantiator is an engine, and how it gets a module.
type instantiator func(code []byte, config wazero.ModuleConfig) (api.Module, error)

var errNotCompiled = errors.New("not compiled") // in which words is not the entry's

// An asEntries engine loads every module from an entry made for it.
func asEntries(t *testing.T) instantiator {
	var entry *entryReader
	r, err := newRuntime(t.Context(), &codeCache{
		get: func(key codeKey) (_ io.ReadCloser, ok bool, err error) { return entry.cache().get(key) },
		add: entry.cache().add,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(context.Background()) })
	n, images := 0, 0
	t.Cleanup(func() { t.Logf("%d modules, %d with an image", n, images) })
	return func(code []byte, config wazero.ModuleConfig) (api.Module, error) {
		n++
		compiled, err := translate(t.Context(), code)
		if err != nil {
			return nil, errNotCompiled
		}
		given, image, err := module.Strip(code)
		if err != nil {
			t.Fatalf("not stripped: %v", err)
		}
		if image != nil {
			images++
		}
		// An engine is to be given one entry only: to this one, which needs all that a
		// script links, what was stripped must not be the same module twice.
		given = append(given, section(0, str(strconv.Itoa(n)))...)
		h, err := tryEntry(t.Context(), given, compiled)
		if err != nil {
			t.Fatalf("not loaded: %v", err)
		}
		dir := t.TempDir()
		if err := h.write(dir, given, compiled, image); err != nil {
			t.Fatal(err)
		}
		if entry, err = readEntry(dir); err != nil {
			t.Fatal(err)
		}
		defer entry.Close()
		m, err := r.CompileModule(t.Context(), entry.module)
		if err != nil {
			t.Fatalf("not loaded: %v", err)
		}
		if page := uint64(os.Getpagesize()); uint64(len(entry.placed)) != h.Length/page*page {
			t.Errorf("of %d bytes of code %d are the file's", h.Length, len(entry.placed))
		}
		least, most, err := module.Memory(entry.module)
		if err != nil {
			t.Fatal(err)
		}
		memory, err := reserve(least*wasmPage, most*wasmPage, always)
		if err != nil {
			t.Fatal(err)
		}
		if err := entry.fill(memory); err != nil {
			t.Fatal(err)
		}
		return r.InstantiateModule(experimental.WithMemoryAllocator(t.Context(), memory.allocator()), m, config)
	}
}

// specTests is where wazero has the tests of the specification, as its module has them.
func specTests(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "internal/integration_test/spectest")
}

// A script is what wast2json makes of a file of those tests.
type script struct {
	Commands []struct {
		Type, Filename, Name, As string
		Line                     int
		ModuleType               string `json:"module_type"`
		Action                   struct {
			Type, Module, Field string
			Args                []struct {
				Type     string
				LaneType string `json:"lane_type"`
				Value    any
			}
		}
	}
}

// play does what a script says, and tells what came of each line. It is for another
// engine to say the same, right or wrong.
func play(t *testing.T, path string, instantiate instantiator) (happened []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s script
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	load := func(file, name string) (api.Module, error) {
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return instantiate(code, wazero.NewModuleConfig().WithName(name))
	}
	if _, err := load(filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(path))), "testdata/spectest.wasm"), "spectest"); err != nil {
		t.Fatal(err)
	}
	modules := map[string]api.Module{}
	var last api.Module
	for i, c := range s.Commands {
		say := func(what string, args ...any) {
			happened = append(happened, fmt.Sprintf("line %d: %s: %s", c.Line, c.Type, fmt.Sprintf(what, args...)))
		}
		if c.Filename != "" && c.ModuleType != "text" {
			name := ""
			if i+1 < len(s.Commands) && s.Commands[i+1].Type == "register" {
				name = s.Commands[i+1].As
			}
			m, err := load(filepath.Join(filepath.Dir(path), c.Filename), name)
			say("%v", err)
			if err == nil && !reflect.ValueOf(m.Memory()).IsNil() {
				b, _ := m.Memory().Read(0, min(m.Memory().Size(), 16<<20))
				say("a memory of %d bytes, %x", m.Memory().Size(), crc32.ChecksumIEEE(b))
			}
			if c.Type == "module" {
				if last = m; c.Name != "" {
					modules[c.Name] = m
				}
			}
			continue
		}
		if c.Action.Type == "" {
			continue
		}
		m := last
		if c.Action.Module != "" {
			m = modules[c.Action.Module]
		}
		if m == nil {
			say("there is no module")
			continue
		}
		if c.Action.Type == "get" {
			say("%x", m.ExportedGlobal(c.Action.Field).Get())
			continue
		}
		var args []uint64
		for _, a := range c.Action.Args {
			args = append(args, argument(t, a.Type, a.LaneType, a.Value)...)
		}
		f := m.ExportedFunction(c.Action.Field)
		results, err := f.Call(t.Context(), args...)
		for i, r := range f.Definition().ResultTypes() {
			if (r == api.ValueTypeExternref || r == 0x70) && i < len(results) && results[i] != 0 {
				results[i] = 1 // an address
			}
		}
		say("%x, %v", results, err)
	}
	return happened
}

// argument is a value of a script, as the engine takes it.
func argument(t *testing.T, kind, lane string, value any) []uint64 {
	t.Helper()
	number := func(v any) uint64 {
		s, _ := v.(string)
		if s == "null" {
			return 0
		}
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("%s %v", kind, v)
		}
		return n
	}
	if kind != "v128" {
		return []uint64{number(value)}
	}
	var b []byte
	for _, v := range value.([]any) {
		n := number(v)
		switch lane {
		case "i8":
			b = append(b, byte(n))
		case "i16":
			b = binary.LittleEndian.AppendUint16(b, uint16(n))
		case "i32", "f32":
			b = binary.LittleEndian.AppendUint32(b, uint32(n))
		default:
			b = binary.LittleEndian.AppendUint64(b, n)
		}
	}
	return []uint64{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

// The specification's own tests: SIMD, bulk memory, references, tables, several
// results, start functions, segments, and how all of it traps.
func TestAnEntryIsTheProgramThatItWasMadeOf(t *testing.T) {
	scripts, err := filepath.Glob(filepath.Join(specTests(t), "v2/testdata/*.json"))
	if err != nil || len(scripts) < 100 {
		t.Fatalf("%d scripts, %v", len(scripts), err)
	}
	lines, traps := 0, 0
	for _, path := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".json"), func(t *testing.T) {
			want, got := play(t, path, asWritten(t)), play(t, path, asEntries(t))
			if len(got) != len(want) {
				t.Fatalf("got %d lines, want %d", len(got), len(want))
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("got  %s\nwant %s", got[i], want[i])
				}
				if lines++; strings.Contains(got[i], "wasm error") {
					traps++
				}
			}
		})
	}
	if lines < 20000 || traps < 1000 {
		t.Errorf("%d lines, %d of them traps: want the specification's", lines, traps)
	}
	t.Logf("%d lines, %d of them traps", lines, traps)
}

// entryOf is the entry of a module, in a directory.
func entryOf(t testing.TB, code []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := writeEntry(context.Background(), dir, code); err != nil {
		t.Fatal(err)
	}
	return dir
}

// runEntry runs what the entry in dir is, and returns the status it exits with.
func runEntry(t testing.TB, dir string) (int, error) {
	t.Helper()
	e, err := readEntry(dir)
	if err != nil {
		return 0, err
	}
	defer e.Close()
	r, err := newRuntime(context.Background(), e.cache())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(context.Background())
	if _, err := wasi_snapshot_preview1.Instantiate(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	m, err := r.CompileModule(context.Background(), e.module)
	if err != nil {
		return 0, err
	}
	least, most, err := module.Memory(e.module)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := reserve(least*wasmPage, most*wasmPage, always)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Free()
	if err := e.fill(memory); err != nil {
		return 0, err
	}
	ctx := experimental.WithMemoryAllocator(context.Background(), memory.allocator())
	instance, err := r.InstantiateModule(ctx, m, wazero.NewModuleConfig().WithStartFunctions())
	if err != nil {
		t.Fatal(err)
	}
	return exitStatus(call(context.Background(), instance, startFunction, maxStack)), nil
}

// exitingWith is a module that exits with n: two of them differ in a function's code only.
func exitingWith(n byte) []byte {
	return wasm(
		section(typeSection, functionType(string([]byte{i32}), ""), functionType("", "")),
		section(importSection, slices.Concat(str(wasi_snapshot_preview1.ModuleName), str("proc_exit"), []byte{0, 0})),
		section(functionSection, []byte{1}),
		section(exportSection, append(str("_start"), 0, 1)),
		section(codeSection, []byte{6, 0, i32const, n, call1, 0, end}),
	)
}

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What names a program is its entry, not what the engine asks for.
func TestModulesThatAreTheSameOnceStrippedAreProgramsOfTheirOwn(t *testing.T) {
	one, two := entryOf(t, exitingWith(1)), entryOf(t, exitingWith(2))
	if !bytes.Equal(read(t, one, moduleFile), read(t, two, moduleFile)) {
		t.Fatal("they are not the same: this tests nothing")
	}
	for dir, want := range map[string]int{one: 1, two: 2} {
		if got, err := runEntry(t, dir); got != want || err != nil {
			t.Errorf("got %d, %v, want %d", got, err, want)
		}
	}
}

func TestAModuleWithTheCodeOfAnotherIsNotRun(t *testing.T) {
	dir, other := entryOf(t, exitingWith(1)), entryOf(t, exiting("_start", "f"))
	if err := os.WriteFile(filepath.Join(dir, moduleFile), read(t, other, moduleFile), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := runEntry(t, dir); !errors.Is(err, errMiss) {
		t.Errorf("got %d, %v, want %v", got, err, errMiss)
	}
}

func TestAModuleThatIsNotUnderstoodIsKeptWhole(t *testing.T) {
	// Names that are said to be longer than their section, which the engine overlooks.
	odd := slices.Concat(exporting("_start", "", ""), []byte{0, 9}, str("name"), []byte{0, 9, 1, 'm'})
	if _, _, err := module.Strip(odd); err == nil {
		t.Fatal("it is understood: this tests nothing")
	}
	dir := entryOf(t, odd)
	if got, err := runEntry(t, dir); got != 0 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	if got := read(t, dir, moduleFile); !bytes.Equal(got, odd) {
		t.Errorf("got %q, want %q", got, odd)
	}
}

// FuzzEntry has any byte of an entry be another one, or end it: it is the same program or
// none.
func FuzzEntry(f *testing.F) {
	memory := wasm(
		section(typeSection, functionType(string([]byte{i32}), ""), functionType("", "")),
		section(importSection, slices.Concat(str(wasi_snapshot_preview1.ModuleName), str("proc_exit"), []byte{0, 0})),
		section(functionSection, []byte{1}),
		section(memorySection, []byte{0, 1}),
		section(exportSection, append(str("_start"), 0, 1)),
		section(codeSection, []byte{9, 0, i32const, 8, 0x28, 2, 0, call1, 0, end}), // i32.load
		section(11, slices.Concat([]byte{0, i32const, 8, end}, str("\x07\x00\x00\x00"))),
	)
	files := map[string][]byte{}
	dir := entryOf(f, memory)
	for _, name := range []string{moduleFile, codeFile} {
		files[name] = read(f, dir, name)
		for _, at := range []int{0, 8, 40, 48, 56, 64, 72, 80, 88, 92, 96, 65530, 65536, 65540, -1, -5} {
			f.Add(name == codeFile, at, byte(1), false)
			f.Add(name == codeFile, at, byte(128), false)
			f.Add(name == codeFile, at, byte(0), true)
		}
	}
	f.Fuzz(func(t *testing.T, inCode bool, at int, flip byte, cut bool) {
		dir := t.TempDir()
		for name, b := range files {
			if (name == codeFile) == inCode {
				b = bytes.Clone(b)
				i := ((at % len(b)) + len(b)) % len(b)
				b[i] ^= flip
				if cut {
					b = b[:i]
				}
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := runEntry(t, dir)
		if err == nil && got != 7 {
			t.Errorf("got %d", got)
		}
		if same := flip == 0 && !cut; same && err != nil {
			t.Error(err)
		}
	})
}
