package module

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

const typeSection = 1

var header = []byte("\x00asm\x01\x00\x00\x00")

func sectionOf(id byte, body []byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(body))), body...)
}

func wasm(sections ...[]byte) []byte {
	return append(slices.Clone(header), slices.Concat(sections...)...)
}

func str(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }

// imported is an entry of the import section: what follows the names begins with
// the kind.
func imported(module, name string, desc ...byte) []byte {
	return slices.Concat(str(module), str(name), desc)
}

func imports(entries ...[]byte) []byte {
	return sectionOf(importSection, slices.Concat(binary.AppendUvarint(nil, uint64(len(entries))), slices.Concat(entries...)))
}

var (
	types  = sectionOf(typeSection, []byte{1, 0x60, 0, 0})
	custom = sectionOf(customSection, append(str("name"), importSection, 1, 2, 3)) // looks like more than it is

	everyKind = [][]byte{
		imported("env", "f", 0, 0),
		imported("env", "f300", 0, 0xac, 0x02),
		imported("env", "table", 1, 0x70, 0, 1),
		imported("env", "table with a limit", 1, 0x6f, 1, 1, 0x80, 0x01),
		imported("env", "table of a heap type", 1, 0x63, 0x00, 0, 1),
		imported("env", "memory", 2, 0, 1),
		imported("env", "memory with a limit", 2, 1, 1, 0x80, 0x80, 0x04),
		imported("env", "shared memory", 2, 3, 1, 2),
		imported("env", "memory of 64 bits", 2, 5, 1, 0xff, 0xff, 0xff, 0xff, 0x0f),
		imported("env", "global", 3, 0x7f, 0),
		imported("env", "mutable global", 3, 0x7e, 1),
		imported("env", "global of a heap type", 3, 0x64, 0x70, 0),
		imported("env", "tag", 4, 0, 0),
		imported("", "", 0, 0),
		imported("wasi_snapshot_preview1", "fd_write", 0, 0),
	}
	everyImport = []Import{
		{"env", "f", FunctionImport},
		{"env", "f300", FunctionImport},
		{"env", "table", TableImport},
		{"env", "table with a limit", TableImport},
		{"env", "table of a heap type", TableImport},
		{"env", "memory", MemoryImport},
		{"env", "memory with a limit", MemoryImport},
		{"env", "shared memory", MemoryImport},
		{"env", "memory of 64 bits", MemoryImport},
		{"env", "global", GlobalImport},
		{"env", "mutable global", GlobalImport},
		{"env", "global of a heap type", GlobalImport},
		{"env", "tag", TagImport},
		{"", "", FunctionImport},
		{"wasi_snapshot_preview1", "fd_write", FunctionImport},
	}
)

func TestImportsOfEveryKindAreListed(t *testing.T) {
	for _, tt := range []struct {
		name string
		code []byte
		want []Import
	}{
		{"no sections", wasm(), nil},
		{"no import section", wasm(custom, types), nil},
		{"no imports", wasm(imports()), nil},
		{"every kind", wasm(types, imports(everyKind...)), everyImport},
		{"a custom section before", wasm(custom, custom, types, custom, imports(everyKind...)), everyImport},
		{"sections behind", wasm(imports(everyKind[0]), sectionOf(3, []byte{0}), custom), everyImport[:1]},
		{"a size in more bytes than it needs", slices.Concat(header, []byte{importSection, 0x89, 0x80, 0x00, 1}, everyKind[0]), everyImport[:1]},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Imports(tt.code)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAMalformedImportSectionIsAnError(t *testing.T) {
	for _, tt := range []struct {
		name string
		code []byte
	}{
		{"a section longer than the module", wasm([]byte{importSection, 5, 0})},
		{"a section without a size", wasm([]byte{importSection})},
		{"a size that does not end", wasm([]byte{importSection, 0x80})},
		{"a size of more than 64 bits", wasm([]byte{importSection, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})},
		{"a size of 2^63", wasm([]byte{importSection, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01})},
		{"an empty section", wasm(sectionOf(importSection, nil))},
		{"more imports counted than there are", wasm(sectionOf(importSection, append([]byte{2}, everyKind[0]...)))},
		{"2^32 imports counted", wasm(sectionOf(importSection, []byte{0x80, 0x80, 0x80, 0x80, 0x10}))},
		{"a name longer than the section", wasm(sectionOf(importSection, []byte{1, 0xff, 0x7f, 'a'}))},
		{"an unknown kind", wasm(imports(imported("a", "b", 9, 0)))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := Imports(tt.code); err == nil {
				t.Errorf("got %v, want an error", got)
			}
		})
	}
}

func TestATruncatedModuleHasAPrefixOfTheImports(t *testing.T) {
	code := wasm(custom, types, imports(everyKind...))
	whole := len(wasm(custom, types))
	for n := range code {
		got, err := Imports(code[:n])
		if len(got) > 0 {
			t.Errorf("%d bytes: got %v of a section that is not whole", n, got)
		}
		if n > whole && err == nil {
			t.Errorf("%d bytes: got no error", n)
		}
	}
	// The section says it is whole, and is not.
	body := slices.Concat([]byte{byte(len(everyKind))}, slices.Concat(everyKind...))
	for n := range body {
		got, err := Imports(wasm(sectionOf(importSection, body[:n])))
		if err == nil {
			t.Errorf("%d bytes of the section: got no error", n)
		}
		if len(got) > len(everyImport) || !slices.Equal(got, everyImport[:len(got)]) {
			t.Errorf("%d bytes of the section: got %v, want a prefix of %v", n, got, everyImport)
		}
	}
}

func TestAKindOfImportHasAName(t *testing.T) {
	for k, want := range map[ImportKind]string{
		FunctionImport: "function", TableImport: "table", MemoryImport: "memory",
		GlobalImport: "global", TagImport: "tag", 5: "import of kind 5", 255: "import of kind 255",
	} {
		if got := k.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTheMemoryOfAModule(t *testing.T) {
	memory := func(b ...byte) []byte { return wasm(types, sectionOf(memorySection, b)) }
	for _, tt := range []struct {
		name        string
		code        []byte
		least, most uint64
		wrong       bool
	}{
		{"no sections", wasm(), 0, 0, false},
		{"no memory", memory(0), 0, 0, false},
		{"without a most", memory(1, 0, 3), 3, 65536, false},
		{"with one", memory(1, 1, 3, 7), 3, 7, false},
		{"shared", memory(1, 3, 3, 7), 3, 7, false},
		{"all there can be", memory(1, 1, 0x80, 0x80, 4, 0x80, 0x80, 4), 65536, 65536, false},
		{"more than there can be", memory(1, 0, 0x81, 0x80, 4), 0, 0, true},
		{"a most of more", memory(1, 1, 1, 0x81, 0x80, 4), 0, 0, true},
		{"a most below its least", memory(1, 1, 2, 1), 0, 0, true},
		{"cut short", memory(1, 1, 2), 0, 0, true},
		{"cut shorter", memory(1, 1, 0x80), 0, 0, true},
		{"a section cut short", wasm([]byte{memorySection, 9, 1}), 0, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			least, most, err := Memory(tt.code)
			if (err != nil) != tt.wrong {
				t.Fatalf("got error %v", err)
			}
			if err == nil && (least != tt.least || most != tt.most) {
				t.Errorf("got %d to %d, want %d to %d", least, most, tt.least, tt.most)
			}
		})
	}
}

func FuzzMemory(f *testing.F) {
	f.Add(wasm(types, sectionOf(memorySection, []byte{1, 1, 3, 7})))
	f.Add(wasm([]byte{memorySection, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}))
	f.Fuzz(func(t *testing.T, code []byte) {
		if least, most, err := Memory(code); err == nil && (least > most || most > 65536) {
			t.Errorf("%d to %d pages", least, most)
		}
	})
}

func FuzzImports(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(wasm())
	f.Add(wasm(custom, types, imports(everyKind...)))
	f.Add(wasm(sectionOf(importSection, []byte{0x80, 0x80, 0x80, 0x80, 0x10})))
	f.Add(wasm([]byte{importSection, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}))
	f.Fuzz(func(t *testing.T, code []byte) {
		got, _ := Imports(code)
		if len(got) > len(code)/4 {
			t.Errorf("%d imports in %d bytes", len(got), len(code))
		}
		for _, i := range got {
			if !bytes.Contains(code, []byte(i.Module)) || !bytes.Contains(code, []byte(i.Name)) || i.Kind > TagImport {
				t.Errorf("%q is not in the module", i)
			}
		}
	})
}
