package module

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Sections of the binary format, and its version.
const (
	customSection = 0
	importSection = 2
	memorySection = 5
	codeSection   = 10
	dataSection   = 11
	countSection  = 12 // of segments of data

	preamble = "\x00asm\x01\x00\x00\x00"
)

// trapping is a function's code that any type fits: no locals, unreachable, end;
// with its length before it.
const trapping = "\x03\x00\x00\x0b"

// An Image is what a module's own memory has in it at first, but for zeros.
type Image struct {
	At    uint64 // where it begins, bytes: a multiple of [ImageAlign]
	Bytes []byte
}

// ImageAlign is a multiple of every size of page that there is, and what a memory
// grows by, bytes.
const ImageAlign = 64 << 10

// Strip is the core module code without what an engine has no use for that has it
// compiled already: each of its functions traps. All else is as it was, down to the
// numbers that compiled code has for functions, types, globals and tables. Of the
// custom sections there is the one with the functions' names, for the traces of traps.
//
// Segments of data are left out too, for whoever makes the memory to put the image
// there, as if they had been copied: an engine allocates several times for each of
// what may be tens of thousands. If they cannot be told apart from what code may name,
// or from what may not fit into the memory, they stay, and the image is nil.
//
// The module is one that the engine takes. What is not understood for certain is an
// error, of which no more is to be made than to do without.
func Strip(code []byte) (stripped []byte, image *Image, err error) {
	if len(code) < len(preamble) || string(code[:len(preamble)]) != preamble {
		return nil, nil, errors.New("not a core module")
	}
	if image, err = imageOf(code); err != nil {
		return nil, nil, err
	}
	out := make([]byte, 0, len(code)/2)
	out = append(out, preamble...)
	for rest := code[len(preamble):]; len(rest) > 0; {
		id := rest[0]
		body, n, err := vector(rest[1:])
		if err != nil {
			return nil, nil, err
		}
		whole := rest[:1+n]
		rest = rest[1+n:]
		switch {
		case id == codeSection:
			if body, err = trappingBodies(body); err != nil {
				return nil, nil, err
			}
			out = appendSection(out, id, body)
		case id == customSection:
			if out, err = appendNames(out, body); err != nil {
				return nil, nil, err
			}
		case id == dataSection && image != nil:
		default:
			out = append(out, whole...)
		}
	}
	return out, image, nil
}

func appendSection(out []byte, id byte, body []byte) []byte {
	out = binary.AppendUvarint(append(out, id), uint64(len(body)))
	return append(out, body...)
}

// vector is what b begins with, whose length comes first; both together take n bytes.
func vector(b []byte) (body []byte, n int, err error) {
	size, n, err := number(b)
	if err != nil {
		return nil, 0, err
	}
	if uint64(size) > uint64(len(b)-n) {
		return nil, 0, errTruncated
	}
	return b[n : n+int(size)], n + int(size), nil
}

// number is the u32 that b begins with, in n bytes.
func number(b []byte) (v uint32, n int, err error) {
	long, n := binary.Uvarint(b)
	if n <= 0 || n > binary.MaxVarintLen32 || long > math.MaxUint32 {
		return 0, 0, errTruncated
	}
	return uint32(long), n, nil
}

// trappingBodies is a code section like the given one, in which all functions trap.
func trappingBodies(section []byte) ([]byte, error) {
	count, n, err := number(section)
	if err != nil {
		return nil, err
	}
	rest := section[n:]
	if uint64(count) > uint64(len(rest)) {
		return nil, errTruncated
	}
	out := make([]byte, 0, n+int(count)*len(trapping))
	out = append(out, section[:n]...)
	for range count {
		_, n, err := vector(rest)
		if err != nil {
			return nil, err
		}
		rest = rest[n:]
		out = append(out, trapping...)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes follow the last function's code", len(rest))
	}
	return out, nil
}

// Subsections of names.
const (
	moduleName    = 0
	functionNames = 1
)

// appendNames appends a custom section, if it is the one with names: of these, what
// a trap's trace shows.
func appendNames(out, section []byte) ([]byte, error) {
	name, n, err := vector(section)
	if err != nil || string(name) != "name" {
		return out, err
	}
	kept := slices.Clone(section[:n])
	for rest := section[n:]; len(rest) > 0; {
		_, n, err := vector(rest[1:])
		if err != nil {
			return nil, err
		}
		if id := rest[0]; id == moduleName || id == functionNames {
			kept = append(kept, rest[:1+n]...)
		}
		rest = rest[1+n:]
	}
	return appendSection(out, customSection, kept), nil
}

// imageOf is what the segments of data of a module come to. It is nil if there are none,
// or they have to stay as they are.
func imageOf(code []byte) (*Image, error) {
	data, err := section(code, dataSection)
	if err != nil || data == nil {
		return nil, err
	}
	// Code can name a segment only of a module with this section.
	if counted, err := section(code, countSection); err != nil || counted != nil {
		return nil, err
	}
	imports, err := Imports(code)
	if err != nil {
		return nil, err
	}
	for _, i := range imports {
		if i.Kind == MemoryImport {
			return nil, nil
		}
	}
	memory, err := section(code, memorySection)
	if err != nil || len(memory) < 2 || memory[0] != 1 || memory[1] > 1 { // one, which is not shared
		return nil, err
	}
	least, _, err := Memory(code)
	if err != nil {
		return nil, err
	}
	segments, err := parseSegments(data)
	if err != nil || len(segments) == 0 {
		return nil, err
	}
	var size uint64
	first, end := uint64(math.MaxUint64), uint64(0)
	for _, s := range segments {
		if !s.active || s.at+uint64(len(s.bytes)) > least*ImageAlign { // then it is a trap
			return nil, nil
		}
		size += uint64(len(s.bytes))
		if len(s.bytes) > 0 {
			first, end = min(first, s.at), max(end, s.at+uint64(len(s.bytes)))
		}
	}
	if size == 0 {
		return &Image{}, nil
	}
	first -= first % ImageAlign
	if end-first > 2*size+1<<20 {
		return nil, nil // few and far between
	}
	image := &Image{At: first, Bytes: make([]byte, end-first)}
	for _, s := range segments { // a later one is copied over an earlier one
		copy(image.Bytes[s.at-first:], s.bytes)
	}
	return image, nil
}

// A segment of data.
type segment struct {
	active bool   // it is copied to a place that is known before the module runs
	at     uint64 // that place
	bytes  []byte
}

func parseSegments(b []byte) ([]segment, error) {
	count, n, err := number(b)
	if err != nil {
		return nil, err
	}
	b = b[n:]
	if uint64(count) > uint64(len(b)) {
		return nil, errTruncated
	}
	segments := make([]segment, 0, count)
	for range count {
		const activeFlag, i32Const, end = 0, 0x41, 0x0b
		var s segment
		if len(b) < 2 {
			return nil, errTruncated
		}
		if b[0] != activeFlag || b[1] != i32Const {
			return []segment{{}}, nil // passive, of another memory, or where a global says
		}
		at, n, err := signed(b[2:])
		if err != nil {
			return nil, err
		}
		if b = b[2+n:]; len(b) == 0 || b[0] != end {
			return []segment{{}}, nil // an expression of more
		}
		s.active, s.at = true, uint64(uint32(at))
		if s.bytes, n, err = vector(b[1:]); err != nil {
			return nil, err
		}
		b = b[1+n:]
		segments = append(segments, s)
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%d bytes follow the last segment of data", len(b))
	}
	return segments, nil
}

// signed is the s32 that b begins with, in n bytes.
func signed(b []byte) (v int32, n int, err error) {
	var long int64
	for shift := 0; n < len(b) && n < binary.MaxVarintLen32; shift += 7 {
		c := b[n]
		n++
		long |= int64(c&0x7f) << shift
		if c&0x80 != 0 {
			continue
		}
		if c&0x40 != 0 {
			long |= -1 << (shift + 7)
		}
		if long < math.MinInt32 || long > math.MaxInt32 {
			break
		}
		return int32(long), n, nil
	}
	return 0, 0, errTruncated
}
