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

	preamble = "\x00asm\x01\x00\x00\x00"
)

// trapping is a function's code that any type fits: no locals, unreachable, end;
// with its length before it.
const trapping = "\x03\x00\x00\x0b"

// Strip is the core module code without what an engine has no use for that has it
// compiled already: each of its functions traps. All else is as it was, down to the
// numbers that compiled code has for functions, types, globals and segments of data.
// Of the custom sections there is the one with the functions' names, for the traces
// of traps.
//
// The module is one that the engine takes. What is not understood for certain is an
// error, of which no more is to be made than to do without.
func Strip(code []byte) ([]byte, error) {
	if len(code) < len(preamble) || string(code[:len(preamble)]) != preamble {
		return nil, errors.New("not a core module")
	}
	out := make([]byte, 0, len(code)/2)
	out = append(out, preamble...)
	for rest := code[len(preamble):]; len(rest) > 0; {
		id := rest[0]
		body, n, err := vector(rest[1:])
		if err != nil {
			return nil, err
		}
		whole := rest[:1+n]
		rest = rest[1+n:]
		switch id {
		case codeSection:
			if body, err = trappingBodies(body); err != nil {
				return nil, err
			}
			out = appendSection(out, id, body)
		case customSection:
			if out, err = appendNames(out, body); err != nil {
				return nil, err
			}
		default:
			out = append(out, whole...)
		}
	}
	return out, nil
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
