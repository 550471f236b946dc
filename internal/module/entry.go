// Package module decides which bytes a container runs, and keeps what they were
// compiled to.
package module

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// An Entry is what a container's first argument names.
type Entry struct {
	// Path is absolute, in the container's root file system; empty where it is a layer
	// of the image.
	Path string `json:"path"`
	// Func is the exported function to call; empty for the module's _start.
	Func string `json:"func,omitempty"`
	// Argv0 is the first argument with the function's name taken off.
	Argv0 string `json:"argv0"`
}

// String is what the entry is called in messages.
func (e Entry) String() string {
	if e.Path == "" {
		return e.Argv0
	}
	return e.Path
}

// LayerEntry is what the first argument of a process names where the module is no
// file, and needs no name: what comes after the last "#" is an exported function,
// the rest is the caller's to choose.
func LayerEntry(argv0 string) (Entry, error) {
	i := strings.LastIndexByte(argv0, '#')
	if i <= 0 {
		return Entry{Argv0: argv0}, nil
	}
	if argv0[i+1:] == "" {
		return Entry{}, noFunction(argv0)
	}
	return Entry{Argv0: argv0[:i], Func: argv0[i+1:]}, nil
}

func noFunction(argv0 string) error {
	return fmt.Errorf("entry point %q: no function is named after the #", argv0)
}

// A FileOpener opens a file of the container's root file system: path is
// absolute, flags are those of open(2).
type FileOpener func(path string, flags int) (*os.File, error)

// Find looks the first argument of a process up, and opens what it names.
//
// An argument with a slash is a path, relative to cwd; one without is looked for
// in the directories of search, a PATH. The part after the last "#" names an
// exported function, unless there is a file whose name it is part of. No
// execute permission is needed; directories on the PATH are passed over.
//
// # Errors
//
//   - no such file: unwraps to [fs.ErrNotExist]
//   - not a regular file
//   - anything that open(2) returns
func Find(open FileOpener, argv0, cwd, search string) (Entry, *os.File, error) {
	if argv0 == "" {
		return Entry{}, nil, errors.New("entry point: the first argument is empty")
	}
	f, p, err := lookUp(open, argv0, cwd, search)
	if err == nil {
		return Entry{Path: p, Argv0: argv0}, f, nil
	}
	if i := strings.LastIndexByte(argv0, '#'); i > 0 && errors.Is(err, fs.ErrNotExist) {
		name, fn := argv0[:i], argv0[i+1:]
		if fn == "" {
			return Entry{}, nil, noFunction(argv0)
		}
		f, p, err := lookUp(open, name, cwd, search)
		if err != nil {
			return Entry{}, nil, err
		}
		return Entry{Path: p, Func: fn, Argv0: name}, f, nil
	}
	return Entry{}, nil, err
}

// maxSearch bounds a PATH, bytes: it is the kernel's MAX_ARG_STRLEN, and no Linux
// program can have a longer one.
const maxSearch = 128 << 10

func lookUp(open FileOpener, name, cwd, search string) (*os.File, string, error) {
	if strings.Contains(name, "/") {
		p := name
		if !path.IsAbs(p) {
			p = path.Join("/", cwd, p)
		}
		f, err := openRegular(open, path.Clean(p))
		return f, path.Clean(p), err
	}
	if len(search) > maxSearch {
		return nil, "", fmt.Errorf("entry point %q: the container's PATH is longer than %d bytes", name, maxSearch)
	}
	if search == "" {
		return nil, "", fmt.Errorf("entry point %q: the container's environment has no PATH to look for it in: %w", name, fs.ErrNotExist)
	}
	for _, dir := range strings.Split(search, ":") {
		if !path.IsAbs(dir) {
			dir = path.Join("/", cwd, dir) // an empty one is the cwd: execvp(3)
		}
		p := path.Join(dir, name)
		f, err := openRegular(open, p)
		if err == nil {
			return f, p, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, errNotRegular) {
			return nil, "", err
		}
	}
	return nil, "", fmt.Errorf("entry point %q: not found in PATH: %w", name, fs.ErrNotExist)
}

var errNotRegular = errors.New("not a regular file")

// openRegular asks for the type of the file before it opens it, since opening a
// device or a FIFO does something.
func openRegular(open FileOpener, p string) (*os.File, error) {
	probe, err := open(p, unix.O_PATH)
	if err != nil {
		return nil, describe(p, err)
	}
	defer probe.Close()
	info, err := probe.Stat()
	if err != nil {
		return nil, describe(p, err)
	}
	if info.IsDir() {
		return nil, fmt.Errorf("entry point %s: is a directory: %w", p, errNotRegular)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("entry point %s: %w", p, errNotRegular)
	}
	f, err := open(p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, describe(p, err)
	}
	return f, nil
}

func describe(p string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("entry point %s: no such file in the container's root file system: %w", p, fs.ErrNotExist)
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("entry point %s: %w", p, err)
}

// MaxSize is how large a module may be, bytes: as in the WebAssembly JavaScript
// interface, and so in every browser.
const MaxSize = 1 << 30

// ErrLinuxProgram is what [Check] says of an ELF file or a script.
var ErrLinuxProgram = errors.New("a Linux program, not a WebAssembly module")

// Check reads the first bytes of a module and tells a core module from what else
// a user may have put in its place. It leaves the offset of f alone.
func Check(f io.ReaderAt) error {
	head := make([]byte, 8)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	head = head[:n]
	switch {
	case n == 0:
		return errors.New("the file is empty")
	case strings.HasPrefix(string(head), "\x7fELF"), strings.HasPrefix(string(head), "#!"):
		return ErrLinuxProgram
	case !strings.HasPrefix(string(head), "\x00asm"):
		text, err := readText(f)
		if err != nil {
			return err
		}
		if text != "" {
			return fmt.Errorf("WebAssembly text (%s), not a binary module: build one of it, as with `wat2wasm app.wat -o app.wasm` of wabt", text)
		}
		return fmt.Errorf("not a WebAssembly module: it begins with % x, not with 00 61 73 6d (\\0asm)", head)
	case n < 8:
		return fmt.Errorf("a truncated WebAssembly module: %d bytes", n)
	case head[6] == 1 && head[7] == 0:
		return errors.New("a WebAssembly component (preview 2), not a core module: components are not supported, build for wasm32-wasip1")
	case string(head[4:]) != "\x01\x00\x00\x00":
		return fmt.Errorf("WebAssembly version % x: only version 1 is supported", head[4:])
	}
	return nil
}

// maxText bounds how much of a file is looked through for the begin of a text,
// bytes: a licence may come before it.
const maxText = 64 << 10

// readText is the first expression of f, if it is the text format of WebAssembly.
//
// See https://webassembly.github.io/spec/core/text/lexical.html#white-space.
func readText(f io.ReaderAt) (string, error) {
	data := make([]byte, maxText)
	n, err := f.ReadAt(data, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	text := skipBlank(string(data[:n]))
	for _, form := range []string{"(module", "(component"} {
		rest, ok := strings.CutPrefix(text, form)
		if ok && (rest == "" || strings.ContainsRune(" \t\r\n()$;", rune(rest[0]))) {
			return form, nil
		}
	}
	return "", nil
}

// skipBlank takes white space and comments off the front of a text.
func skipBlank(text string) string {
	text = strings.TrimPrefix(text, "\ufeff") // by some editors, to say that it is UTF-8
	for {
		text = strings.TrimLeft(text, " \t\r\n")
		switch {
		case strings.HasPrefix(text, ";;"):
			_, text, _ = strings.Cut(text, "\n")
		case strings.HasPrefix(text, "(;"):
			text = skipComment(text)
		default:
			return text
		}
	}
}

// skipComment takes the comment off that text begins with; there may be others in it.
func skipComment(text string) string {
	for depth := 0; len(text) > 1; text = text[1:] {
		switch text[:2] {
		case "(;":
			depth, text = depth+1, text[1:]
		case ";)":
			depth, text = depth-1, text[1:]
		}
		if depth == 0 {
			return text[1:]
		}
	}
	return ""
}
