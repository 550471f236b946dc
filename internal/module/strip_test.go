package module

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

func vec(entries ...[]byte) []byte {
	return append(binary.AppendUvarint(nil, uint64(len(entries))), slices.Concat(entries...)...)
}

// active is a segment of data that is copied to the place that its expression says.
func active(data string, offset ...byte) []byte {
	return slices.Concat([]byte{0}, offset, str(data))
}

const (
	functionSection = 3
	exportSection   = 7
)

func TestStrip(t *testing.T) {
	code := func(bodies ...string) []byte {
		var all [][]byte
		for _, b := range bodies {
			all = append(all, str(b))
		}
		return sectionOf(codeSection, vec(all...))
	}
	named := func(name string, rest ...byte) []byte { return sectionOf(customSection, append(str(name), rest...)) }
	memory := sectionOf(memorySection, []byte{1, 0, 1})
	data := func(segments ...[]byte) []byte { return sectionOf(dataSection, vec(segments...)) }
	long := string(make([]byte, 300))
	for _, tt := range []struct {
		name       string
		code, want []byte
		image      *Image
	}{
		{"nothing", wasm(), wasm(), nil},
		{
			"functions trap, and all else is as it was",
			wasm(types, sectionOf(functionSection, []byte{2, 0, 0}), sectionOf(exportSection, vec(append(str("f"), 0, 0))), code("\x00\x01\x0b", "\x00"+long+"\x0b")),
			wasm(types, sectionOf(functionSection, []byte{2, 0, 0}), sectionOf(exportSection, vec(append(str("f"), 0, 0))), code("\x00\x00\x0b", "\x00\x00\x0b")),
			nil,
		},
		{
			"of custom sections names are left, and of these the module's and the functions'",
			wasm(named("producers", 1, 2, 3), named("name", 0, 2, 1, 'm', 1, 4, 1, 0, 1, 'f', 2, 3, 1, 0, 0, 9, 0), named(".debug_info", 1)),
			wasm(named("name", 0, 2, 1, 'm', 1, 4, 1, 0, 1, 'f')),
			nil,
		},
		{
			"segments become an image, a later one over an earlier one",
			wasm(memory, data(active("abcd", 0x41, 8, 0x0b), active("", 0x41, 0, 0x0b), active("XY", 0x41, 9, 0x0b), active("z", 0x41, 14, 0x0b))),
			wasm(memory),
			&Image{0, []byte("\x00\x00\x00\x00\x00\x00\x00\x00aXYd\x00\x00z")},
		},
		{
			"an image begins at a page",
			wasm(sectionOf(memorySection, []byte{1, 1, 4, 8}), data(active("a", 0x41, 0x81, 0x80, 0x04, 0x0b), active("b", 0x41, 0x80, 0x80, 0x0c, 0x0b))),
			wasm(sectionOf(memorySection, []byte{1, 1, 4, 8})),
			&Image{65536, slices.Concat([]byte{0, 'a'}, make([]byte, 131070), []byte{'b'})},
		},
		{"segments of nothing", wasm(memory, data(active("", 0x41, 0, 0x0b))), wasm(memory), &Image{}},
		{
			"the last bytes of a memory", wasm(memory, data(active("ab", 0x41, 0xfe, 0xff, 0x03, 0x0b))), wasm(memory),
			&Image{0, append(make([]byte, 65534), "ab"...)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, image, err := Strip(tt.code)
			if err != nil || !bytes.Equal(got, tt.want) {
				t.Errorf("got  %q, %v\nwant %q", got, err, tt.want)
			}
			if (image == nil) != (tt.image == nil) || image != nil && (image.At != tt.image.At || !bytes.Equal(image.Bytes, tt.image.Bytes)) {
				t.Errorf("got %+v, want %+v", image, tt.image)
			}
		})
	}
	a := active("abcd", 0x41, 8, 0x0b)
	for name, kept := range map[string][]byte{
		"one that code may name":              wasm(memory, sectionOf(countSection, []byte{1}), data(a)),
		"a passive one":                       wasm(memory, data(a, append([]byte{1}, str("x")...))),
		"one of a memory by number":           wasm(memory, data(slices.Concat([]byte{2, 0, 0x41, 8, 0x0b}, str("x")))),
		"one where a global says":             wasm(memory, data(active("x", 0x23, 0, 0x0b))),
		"one where a sum is":                  wasm(memory, data(active("x", 0x41, 1, 0x41, 1, 0x6a, 0x0b))),
		"one beyond the memory":               wasm(memory, data(a, active("x", 0x41, 0x80, 0x80, 0x04, 0x0b))),
		"one that ends beyond the memory":     wasm(memory, data(a, active("xy", 0x41, 0xff, 0xff, 0x03, 0x0b))),
		"an empty one beyond the memory":      wasm(memory, data(a, active("", 0x41, 0x81, 0x80, 0x04, 0x0b))),
		"one at the end of all memory":        wasm(memory, data(active("x", 0x41, 0x7f, 0x0b))),
		"of an imported memory":               wasm(imports(imported("env", "memory", 2, 0, 1)), data(a)),
		"of an imported memory and one's own": wasm(imports(imported("env", "memory", 2, 0, 1)), memory, data(a)),
		"of no memory":                        wasm(data(a)),
		"of a shared memory":                  wasm(sectionOf(memorySection, []byte{1, 3, 1, 1}), data(a)),
		"of two memories":                     wasm(sectionOf(memorySection, []byte{2, 0, 1, 0, 1}), data(a)),
		"few and far between":                 wasm(sectionOf(memorySection, []byte{1, 0, 64}), data(a, active("x", 0x41, 0x80, 0x80, 0x80, 0x01, 0x0b))),
		"none":                                wasm(memory, data()),
	} {
		t.Run("segments that stay as they are: "+name, func(t *testing.T) {
			if got, image, err := Strip(kept); err != nil || image != nil || !bytes.Equal(got, kept) {
				t.Errorf("got  %q, %+v, %v\nwant %q", got, image, err, kept)
			}
		})
	}
	for name, bad := range map[string][]byte{
		"not a module":                  []byte("\x00asm"),
		"a component":                   []byte("\x00asm\x0d\x00\x01\x00"),
		"a section cut short":           wasm([]byte{codeSection, 9, 1}),
		"a section without a length":    wasm([]byte{codeSection}),
		"a length of six bytes":         wasm([]byte{codeSection, 0x80, 0x80, 0x80, 0x80, 0x80, 0}),
		"a length of more than 32 bits": wasm([]byte{codeSection, 0xff, 0xff, 0xff, 0xff, 0x7f}),
		"fewer functions than said":     wasm(sectionOf(codeSection, []byte{2, 2, 0, 0x0b})),
		"more functions than said":      wasm(sectionOf(codeSection, []byte{1, 2, 0, 0x0b, 0})),
		"a function cut short":          wasm(sectionOf(codeSection, []byte{1, 9, 0, 0x0b})),
		"many functions":                wasm(sectionOf(codeSection, []byte{0xff, 0xff, 0xff, 0xff, 0x0f})),
		"names cut short":               wasm(named("name", 1, 9)),
		"a custom section of no name":   wasm(sectionOf(customSection, nil)),
		"segments cut short":            wasm(memory, sectionOf(dataSection, []byte{2, 0, 0x41, 8, 0x0b, 0})),
		"a segment cut short":           wasm(memory, sectionOf(dataSection, []byte{1, 0, 0x41, 8, 0x0b, 9})),
		"an offset cut short":           wasm(memory, sectionOf(dataSection, []byte{1, 0, 0x41, 0x80})),
		"an offset of 33 bits":          wasm(memory, data(active("x", 0x41, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x0b))),
		"more segments than said":       wasm(memory, sectionOf(dataSection, append(vec(a), 0))),
		"many segments":                 wasm(memory, sectionOf(dataSection, []byte{0xff, 0xff, 0xff, 0xff, 0x0f})),
		"no segments at all":            wasm(memory, sectionOf(dataSection, []byte{})),
	} {
		t.Run("an error: "+name, func(t *testing.T) {
			if got, image, err := Strip(bad); err == nil {
				t.Errorf("got %q, %+v", got, image)
			}
		})
	}
}

// FuzzStrip has it read anything: what comes of it is stripped, has the same imports and
// memory, and comes of itself again; an image lies in the memory.
func FuzzStrip(f *testing.F) {
	f.Add(wasm(types, sectionOf(functionSection, []byte{1, 0}), sectionOf(memorySection, []byte{1, 0, 1}), sectionOf(codeSection, []byte{1, 2, 0, 0x0b}), sectionOf(dataSection, vec(active("ab", 0x41, 9, 0x0b)))))
	f.Add(wasm(imports(imported("env", "f", 0, 0)), custom, sectionOf(customSection, append(str("name"), 1, 4, 1, 0, 1, 'f', 2, 0))))
	f.Add(wasm(sectionOf(memorySection, []byte{1, 1, 3, 7}), sectionOf(countSection, []byte{1}), sectionOf(dataSection, vec([]byte{1, 1, 'x'}))))
	f.Add(wasm(sectionOf(memorySection, []byte{1, 0, 0x80, 0x80, 4}), sectionOf(dataSection, vec(active("x", 0x41, 0x7f, 0x0b), active("y", 0x41, 0, 0x0b)))))
	f.Add(wasm([]byte{codeSection, 0xff, 0xff, 0xff, 0xff, 0x0f}))
	f.Fuzz(func(t *testing.T, code []byte) {
		stripped, image, err := Strip(code)
		if err != nil {
			return
		}
		again, more, err := Strip(stripped)
		if err != nil || !bytes.Equal(again, stripped) || more != nil && len(more.Bytes) > 0 && image != nil {
			t.Errorf("got %q, %+v, %v of %q", again, more, err, stripped)
		}
		before, err1 := Imports(code)
		after, err2 := Imports(stripped)
		if !slices.Equal(before, after) || (err1 == nil) != (err2 == nil) {
			t.Errorf("imports %v, %v: were %v, %v", after, err2, before, err1)
		}
		least, most, err1 := Memory(code)
		least2, most2, err2 := Memory(stripped)
		if least != least2 || most != most2 || (err1 == nil) != (err2 == nil) {
			t.Errorf("memory of %d to %d, %v: was %d to %d, %v", least2, most2, err2, least, most, err1)
		}
		if image != nil && (image.At%ImageAlign != 0 || image.At+uint64(len(image.Bytes)) > least*ImageAlign || len(image.Bytes) > 2*len(code)+1<<20) {
			t.Errorf("an image of %d bytes at %d, in a memory of %d pages", len(image.Bytes), image.At, least)
		}
	})
}
