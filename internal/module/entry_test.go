package module

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-wazero/containerd-shim-wazero/internal/sandbox"
)

// rootfs is a root file system with the given files, whose content is their
// path, and the opener of it. A path that ends in a slash is a directory.
func rootfs(t *testing.T, paths ...string) (string, FileOpener) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range paths {
		full := filepath.Join(dir, p)
		if strings.HasSuffix(p, "/") {
			if err := os.MkdirAll(full, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, opener(t, dir)
}

func opener(t *testing.T, dir string) FileOpener {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return func(path string, flags int) (*os.File, error) {
		return sandbox.OpenInRoot(int(root.Fd()), path, flags)
	}
}

func TestTheFirstArgumentNamesTheEntryPoint(t *testing.T) {
	_, open := rootfs(t,
		"/app/main.wasm", "/app/lib#v2.wasm", "/app/bin/tool", "/usr/bin/tool", "/usr/bin/run.wasm",
		"/usr/local/bin/run.wasm/", "/usr/sbin/tool/", "/app/a#b#c", "/app/file", "/app/#lead")
	for _, tt := range []struct {
		name               string
		argv0, cwd, search string
		want               Entry
	}{
		{"an absolute path", "/app/main.wasm", "/", "", Entry{"/app/main.wasm", "", "/app/main.wasm"}},
		{"an absolute path is cleaned, the argument is not", "/app//../app/./main.wasm", "/", "", Entry{"/app/main.wasm", "", "/app//../app/./main.wasm"}},
		{"a path relative to the working directory", "./main.wasm", "/app", "/usr/bin", Entry{"/app/main.wasm", "", "./main.wasm"}},
		{"a relative path with a directory", "bin/tool", "/app", "/usr/bin", Entry{"/app/bin/tool", "", "bin/tool"}},
		{"dots above the root stay in it", "../../../app/main.wasm", "/app", "", Entry{"/app/main.wasm", "", "../../../app/main.wasm"}},
		{"a name is looked for in PATH", "tool", "/", "/nowhere:/usr/bin", Entry{"/usr/bin/tool", "", "tool"}},
		{"a name is not looked for in the working directory", "tool", "/app/bin", "/usr/bin", Entry{"/usr/bin/tool", "", "tool"}},
		{"the first one in PATH wins", "tool", "/", "/app/bin:/usr/bin", Entry{"/app/bin/tool", "", "tool"}},
		{"a directory in PATH is passed over", "run.wasm", "/", "/usr/local/bin:/usr/bin", Entry{"/usr/bin/run.wasm", "", "run.wasm"}},
		{"a file as an element of PATH is passed over", "tool", "/", "/app/file:/usr/bin", Entry{"/usr/bin/tool", "", "tool"}},
		{"a PATH of an empty element is the working directory", "main.wasm", "/app", ":", Entry{"/app/main.wasm", "", "main.wasm"}},
		{"an empty first element is the working directory", "main.wasm", "/app", ":/usr/bin", Entry{"/app/main.wasm", "", "main.wasm"}},
		{"an empty element between is the working directory", "main.wasm", "/app", "/usr/sbin::/usr/bin", Entry{"/app/main.wasm", "", "main.wasm"}},
		{"an empty last element is the working directory", "main.wasm", "/app", "/usr/bin:", Entry{"/app/main.wasm", "", "main.wasm"}},
		{"a relative element is one of the working directory", "tool", "/app", "bin", Entry{"/app/bin/tool", "", "tool"}},
		{"a function after the #", "/app/main.wasm#add", "/", "", Entry{"/app/main.wasm", "add", "/app/main.wasm"}},
		{"a function of a name in PATH", "tool#add", "/", "/usr/bin", Entry{"/usr/bin/tool", "add", "tool"}},
		{"a function of a relative path", "./main.wasm#add", "/app", "", Entry{"/app/main.wasm", "add", "./main.wasm"}},
		{"a function with a slash in its name", "/app/main.wasm#ns/add", "/", "", Entry{"/app/main.wasm", "ns/add", "/app/main.wasm"}},
		{"the last # splits", "/app/a#b#c#f", "/", "", Entry{"/app/a#b#c", "f", "/app/a#b#c"}},
		{"a file literally so named wins", "/app/lib#v2.wasm", "/", "", Entry{"/app/lib#v2.wasm", "", "/app/lib#v2.wasm"}},
		{"a file that begins with #", "#lead", "/", "/app", Entry{"/app/#lead", "", "#lead"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, f, err := Find(open, tt.argv0, tt.cwd, tt.search)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			data, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := string(data), tt.want.Path; got != want {
				t.Errorf("opened %s, want %s", got, want)
			}
		})
	}
}

func TestWhatIsNoRegularFileIsNoEntryPoint(t *testing.T) {
	dir, open := rootfs(t, "/main.wasm", "/app/main.wasm", "/app/dir/", "/app/dir#f/")
	if err := unix.Mkfifo(filepath.Join(dir, "app/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "app/loop")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, argv0, search string
		missing             bool // unwraps to fs.ErrNotExist
	}{
		{"an empty argument", "", "/app", false},
		{"a missing file", "/app/none", "", true},
		{"a name not in PATH", "none", "/app:/", true},
		{"a name without a PATH, though it is in the working directory", "main.wasm", "", true},
		{"a function of a name without a PATH", "main.wasm#f", "", true},
		{"a function of a missing file", "/app/none#f", "", true},
		{"a function of a name not in PATH", "none#f", "/app", true},
		{"no function after the #", "/app/main.wasm#", "", false},
		{"only a #", "#", "/app", true},
		{"a # and a function", "#f", "/app", true},
		{"a directory", "/app/dir", "", false},
		{"a directory with a # does not fall back to a function", "/app/dir#f", "", false},
		{"the root", "/", "", false},
		{"a directory in PATH is not found", "dir", "/app", true},
		{"dots are not looked for above PATH", "..", "/app", true},
		{"a FIFO", "/app/fifo", "", false},
		{"below a file", "/app/main.wasm/x", "", false},
		{"a loop of symbolic links", "/app/loop", "", false},
		{"a loop of symbolic links in PATH", "loop", "/app", false},
		{"a NUL", "/app/main.wasm\x00", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, f, err := Find(open, tt.argv0, "/", tt.search)
			if err == nil {
				f.Close()
				t.Fatalf("got %+v, want an error", e)
			}
			if got := errors.Is(err, fs.ErrNotExist); got != tt.missing {
				t.Errorf("%v: got not exist %v, want %v", err, got, tt.missing)
			}
		})
	}
}

func TestASymbolicLinkLeadsToNoFileOfTheHost(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret.wasm")
	if err := os.WriteFile(secret, []byte("the host's"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, open := rootfs(t, "/app/main.wasm", "/usr/bin/")
	for name, target := range map[string]string{
		"app/absolute":    secret,
		"app/relative":    strings.Repeat("../", 40) + secret[1:],
		"app/proc":        "/proc/self/root" + secret,
		"usr/bin/command": secret,
		"app/inside":      "/app/main.wasm",
		"app/above":       "../../../../app/main.wasm",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, argv0 := range []string{"/app/absolute", "/app/relative", "/app/proc", "command"} {
		e, f, err := Find(open, argv0, "/", "/usr/bin")
		if err == nil {
			f.Close()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %+v, %v, want %v", argv0, e, err, fs.ErrNotExist)
		}
	}
	for _, argv0 := range []string{"/app/inside", "/app/above"} {
		_, f, err := Find(open, argv0, "/", "")
		if err != nil {
			t.Errorf("%s: %v", argv0, err)
			continue
		}
		data, _ := io.ReadAll(f)
		f.Close()
		if got, want := string(data), "/app/main.wasm"; got != want {
			t.Errorf("%s: opened %q, want %q", argv0, got, want)
		}
	}
}

func TestAnErrorOfOpenIsPassedOn(t *testing.T) {
	refuse := func(path string, _ int) (*os.File, error) {
		return nil, &os.PathError{Op: "open", Path: path, Err: unix.EACCES}
	}
	for _, argv0 := range []string{"/app/main.wasm", "/app/main.wasm#f", "main.wasm"} {
		if _, _, err := Find(refuse, argv0, "/", "/app"); !errors.Is(err, unix.EACCES) {
			t.Errorf("%s: got %v, want %v", argv0, err, unix.EACCES)
		}
	}
}

func TestTheFirstArgumentOfALayerIsANameAndAFunction(t *testing.T) {
	for _, tt := range []struct {
		argv0 string
		want  Entry
	}{
		{"app", Entry{Argv0: "app"}},
		{"/bin/app.wasm", Entry{Argv0: "/bin/app.wasm"}},
		{"app#f", Entry{Argv0: "app", Func: "f"}},
		{"a#b#c", Entry{Argv0: "a#b", Func: "c"}},
		{"#f", Entry{Argv0: "#f"}},
	} {
		if got, err := LayerEntry(tt.argv0); err != nil || got != tt.want || got.String() != tt.want.Argv0 {
			t.Errorf("%q: got %+v, %v, want %+v", tt.argv0, got, err, tt.want)
		}
	}
	if got, err := LayerEntry("app#"); err == nil || !strings.Contains(err.Error(), "no function") {
		t.Errorf("app#: got %+v, %v", got, err)
	}
}

func TestOnlyACoreModuleOfVersion1IsOne(t *testing.T) {
	for _, tt := range []struct{ name, head, want string }{
		{"a module", "\x00asm\x01\x00\x00\x00", ""},
		{"a module with sections", "\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00", ""},
		{"nothing", "", "empty"},
		{"an ELF executable", "\x7fELF\x02\x01\x01\x00", "Linux program"},
		{"four bytes of ELF", "\x7fELF", "Linux program"},
		{"a script", "#!/bin/sh\n", "Linux program"},
		{"two bytes of a script", "#!", "Linux program"},
		{"text", "hello, world", "68 65 6c 6c"},
		{"one byte", "\x00", "begins with 00"},
		{"three bytes of the magic number", "\x00as", "not a WebAssembly module"},
		{"the text format", "(module)", "wat2wasm"},
		{"the text format, its first word alone", "(module", "wat2wasm"},
		{"the text format, with a name", "(module$app (func))", "wat2wasm"},
		{"the text format, after blanks", "\ufeff \t\r\n (module\n)", "wat2wasm"},
		{"the text format, after comments", ";; Copyright (;\n(; of (; all ;) ;);;\n(module)", "wat2wasm"},
		{"the text format, after an empty comment", "(;;)(module)", "wat2wasm"},
		{"the text format, after a long licence", strings.Repeat(";; words\n", 5000) + "(module)", "wat2wasm"},
		{"the text format of a component", "(component)", "wat2wasm"},
		{"a comment that does not end", "(; (module", "not a WebAssembly module"},
		{"another comment that does not end", "(;", "not a WebAssembly module"},
		{"a line of comment and no more", ";; (module)", "not a WebAssembly module"},
		{"another word", "(modules)", "not a WebAssembly module"},
		{"the magic number alone", "\x00asm", "truncated"},
		{"half a version", "\x00asm\x01\x00\x00", "truncated"},
		{"a component", "\x00asm\x0d\x00\x01\x00", "component"},
		{"version 2", "\x00asm\x02\x00\x00\x00", "version 02 00 00 00"},
		{"version 0", "\x00asm\x00\x00\x00\x00", "version 00 00 00 00"},
		{"version 1 with the last byte set", "\x00asm\x01\x00\x00\x01", "version"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Check(strings.NewReader(tt.head))
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestAPATHIsNoLongerThanThatOfALinuxProgram(t *testing.T) {
	_, open := rootfs(t, "bin/app")
	const bin = ":/bin"
	for _, tt := range []struct {
		length int
		found  bool
	}{{maxSearch, true}, {maxSearch + 1, false}} {
		_, f, err := Find(open, "app", "/", strings.Repeat(":", tt.length-len(bin))+bin)
		if (err == nil) != tt.found {
			t.Errorf("%d bytes: got %.100v, want found: %v", tt.length, err, tt.found)
		}
		if err == nil {
			f.Close()
		} else if !strings.Contains(err.Error(), "PATH is longer") {
			t.Errorf("got %.100v", err)
		}
	}
}

type brokenReader struct{}

func (brokenReader) ReadAt([]byte, int64) (int, error) { return 0, unix.EIO }

func TestAReadErrorIsNotTakenForAnEmptyFile(t *testing.T) {
	if err := Check(brokenReader{}); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want %v", err, unix.EIO)
	}
}

// FuzzFind looks up anything in a directory that stands for a root file system,
// beside which there are files that nobody may find.
func FuzzFind(f *testing.F) {
	dir := f.TempDir()
	root := filepath.Join(dir, "rootfs")
	for path, text := range map[string]string{
		"secret": "outside", "rootfs-2/app": "outside", "rootfs/app.wasm": "in", "rootfs/bin/app": "in", "rootfs/a#b": "in", "rootfs/work/rel.wasm": "in", "rootfs/bin/#": "in",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	for link, to := range map[string]string{"out": "../secret", "abs": filepath.Join(dir, "secret"), "up": "..", "loop": "loop", "bin/in": "/app.wasm", "dangling": "nowhere", "magic": "/proc/self/root"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			f.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		f.Fatal(err)
	}
	rootDir, err := os.Open(root)
	if err != nil {
		f.Fatal(err)
	}
	defer rootDir.Close()
	open := func(path string, flags int) (*os.File, error) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			f.Errorf("asked for %q", path)
		}
		return sandbox.OpenInRoot(int(rootDir.Fd()), path, flags)
	}
	for _, argv0 := range []string{
		"", "#", "/", "//", "/app.wasm", "/app.wasm#run", "/app.wasm#", "/app.wasm##", "app", "app#f", "a#b", "/a#b", "/a#b#c", "in", "./rel.wasm", "../app.wasm", "../../secret", "/../secret",
		"/out", "/abs", "/up/secret", "/loop", "/fifo", "/bin", "/dangling", "/magic", "/app.wasm/x", "/\x00", "/app.wasm\x00", "\xff#\xff", "/" + strings.Repeat("a", 300), strings.Repeat("/a", 3000), "#/app.wasm",
	} {
		f.Add(argv0, "/", "/usr/bin:/bin")
		f.Add(argv0, "/work", "")
		f.Add(argv0, "../..", "::.:..:relative:/bin:/fifo:/app.wasm:\x00")
	}
	f.Fuzz(func(t *testing.T, argv0, cwd, search string) {
		e, file, err := Find(open, argv0, cwd, search)
		if err != nil {
			if file != nil || !strings.Contains(err.Error(), "entry point") {
				t.Errorf("got %v, %v", file, err)
			}
			return
		}
		defer file.Close()
		text, err := io.ReadAll(file)
		if err != nil || string(text) != "in" {
			t.Errorf("%q in %q, of %q: read %q, %v", argv0, cwd, search, text, err)
		}
		if !filepath.IsAbs(e.Path) || filepath.Clean(e.Path) != e.Path {
			t.Errorf("%q is %q", argv0, e.Path)
		}
		// The function's name is the end of the argument, or there is none.
		if want := strings.TrimSuffix(e.Argv0+"#"+e.Func, "#"); want != argv0 && (e.Func != "" || e.Argv0 != argv0) {
			t.Errorf("%q: got %+v", argv0, e)
		}
	})
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{"", "\x00asm\x01\x00\x00\x00", "\x00asm\x0d\x00\x01\x00", "\x7fELF", "#!/", "\x00asm", "garbage", "(module)", " ;; x\n(; (; ;) ;)(module", "(;", "(;;;)"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got := Check(bytes.NewReader(data)) == nil
		if want := bytes.HasPrefix(data, []byte("\x00asm\x01\x00\x00\x00")); got != want {
			t.Errorf("% x: got %v, want %v", data, got, want)
		}
	})
}
