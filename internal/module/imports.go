package module

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ImportKind is what a module imports: the number the binary format has for it.
type ImportKind byte

// Kinds of imports.
const (
	FunctionImport ImportKind = iota
	TableImport
	MemoryImport
	GlobalImport
	TagImport
)

func (k ImportKind) String() string {
	names := [...]string{"function", "table", "memory", "global", "tag"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("import of kind %d", byte(k))
}

// An Import is one import of a module.
type Import struct {
	Module, Name string
	Kind         ImportKind
}

var errTruncated = errors.New("a section is truncated")

// Imports lists the imports of a core module. wazero tells of functions and
// memories only, and of the others not before the module runs.
//
// See https://webassembly.github.io/spec/core/binary/modules.html#import-section.
func Imports(code []byte) ([]Import, error) {
	body, err := section(code, importSection)
	if err != nil || body == nil {
		return nil, err
	}
	return parseImports(body)
}

// section is the body of the first section with the given id; nil without one.
func section(code []byte, id byte) ([]byte, error) {
	for rest := code[min(8, len(code)):]; len(rest) > 0; {
		size, n := binary.Uvarint(rest[1:])
		if n <= 0 || size > uint64(len(rest)-1-n) {
			return nil, errTruncated
		}
		body := rest[1+n : 1+n+int(size)]
		if rest[0] == id {
			return body, nil
		}
		rest = rest[1+n+int(size):]
	}
	return nil, nil
}

// Memory is how large a core module's own memory is at first and may become, in
// pages of 64 KiB; 65536 are all that it can address. Both are 0 without one.
// wazero tells that only of a memory that is exported.
func Memory(code []byte) (least, most uint64, err error) {
	body, err := section(code, memorySection)
	if err != nil || len(body) < 2 || body[0] == 0 {
		return 0, 0, err
	}
	least, n := binary.Uvarint(body[2:])
	if n <= 0 {
		return 0, 0, errTruncated
	}
	most = 1 << 16
	if limited := body[1]&1 != 0; limited {
		if most, n = binary.Uvarint(body[2+n:]); n <= 0 {
			return 0, 0, errTruncated
		}
	}
	if least > most || most > 1<<16 {
		return 0, 0, fmt.Errorf("a memory of %d to %d pages", least, most)
	}
	return least, most, nil
}

func parseImports(b []byte) (imports []Import, err error) {
	// LEB128 as the format has it is what encoding/binary calls a uvarint.
	number := func() (v uint64) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err, b = errTruncated, nil
			return 0
		}
		b = b[n:]
		return v
	}
	take := func(n uint64) (s []byte) {
		if n > uint64(len(b)) {
			err, b = errTruncated, nil
			return nil
		}
		s, b = b[:n], b[n:]
		return s
	}
	limits := func() {
		if flags := number(); flags&1 != 0 {
			number()
		}
		number()
	}
	reference := func() { // a reference type: one byte, or two more for a heap type
		if t := number(); t == 0x63 || t == 0x64 {
			number()
		}
	}
	for count := number(); count > 0 && err == nil; count-- {
		i := Import{Module: string(take(number())), Name: string(take(number()))}
		kind := take(1)
		if err != nil {
			break
		}
		switch i.Kind = ImportKind(kind[0]); i.Kind {
		case FunctionImport:
			number()
		case TableImport:
			reference()
			limits()
		case MemoryImport:
			limits()
		case GlobalImport:
			reference()
			take(1) // mutable or not
		case TagImport:
			take(1)
			number()
		default:
			return imports, fmt.Errorf("the import section has a %v", i.Kind)
		}
		if err == nil {
			imports = append(imports, i)
		}
	}
	return imports, err
}
