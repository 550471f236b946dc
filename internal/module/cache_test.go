package module

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("TEST_ROOT") != "" || os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: run `sudo make test`")
}

func newTestCache(t *testing.T) *Cache {
	t.Helper()
	needRoot(t)
	return NewCache(filepath.Join(t.TempDir(), "cache"), "v1.2.3")
}

func moduleFile(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "module")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// leaving is a compiler that makes what it leaves by a function, as the user it is.
func leaving(t *testing.T, leave func(dir string) error) Compiler {
	return func(context.Context, *os.File) (*os.File, error) {
		dir := t.TempDir()
		if err := leave(dir); err != nil {
			return nil, err
		}
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, CompilerUser, CompilerUser)
		})
		if err != nil {
			return nil, err
		}
		return os.Open(dir)
	}
}

// leavingFile is a compiler that leaves one file.
func leavingFile(t *testing.T, content string) Compiler {
	return leaving(t, func(dir string) error {
		return errors.Join(os.Mkdir(filepath.Join(dir, "engine"), 0o700), os.WriteFile(filepath.Join(dir, "engine/code"), []byte(content), 0o600))
	})
}

func compiler(t *testing.T, count *atomic.Int32) Compiler {
	return func(ctx context.Context, f *os.File) (*os.File, error) {
		count.Add(1)
		return leavingFile(t, "compiled")(ctx, f)
	}
}

// get is Get for a file of which nothing is known yet.
func get(ctx context.Context, c *Cache, f *os.File, compile Compiler) (*Artifact, error) {
	id, err := Identify(f)
	if err != nil {
		return nil, err
	}
	return c.GetVerified(ctx, id, reopen(f), compile, "/nonexistent/spare")
}

// reopen opens a file anew, since what is opened for Get is closed by it.
func reopen(f *os.File) Opener {
	return func(context.Context) (*os.File, error) { return os.Open(f.Name()) }
}

// codeDir is the path of what the engine is given.
func codeDir(a *Artifact) string { return fmt.Sprintf("/proc/self/fd/%d", a.Dir.Fd()) }

func assertEmpty(t *testing.T, c *Cache) {
	t.Helper()
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("%s was left behind", e.Name())
	}
}

func TestAModuleIsCompiledOnceHoweverManyAsk(t *testing.T) {
	one := newTestCache(t)
	other := NewCache(one.dir, one.version) // as another process would
	f := moduleFile(t, "module")
	var compiled, hits atomic.Int32
	var wg sync.WaitGroup
	for i := range 12 {
		c := []*Cache{one, other}[i%2]
		wg.Go(func() {
			a, err := get(t.Context(), c, f, compiler(t, &compiled))
			if err != nil {
				t.Error(err)
				return
			}
			defer a.Close()
			if a.Hit {
				hits.Add(1)
			}
			if got, err := os.ReadFile(codeDir(a) + "/engine/code"); err != nil || string(got) != "compiled" {
				t.Errorf("got %q, %v, want the compiled code", got, err)
			}
		})
	}
	wg.Wait()
	if got, want := compiled.Load(), int32(1); got != want {
		t.Errorf("compiled %d times, want %d", got, want)
	}
	if got, want := hits.Load(), int32(11); got != want {
		t.Errorf("%d hits, want %d", got, want)
	}
	entries, err := os.ReadDir(one.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v, want the entry alone", entries, err)
	}
}

func TestAModuleIsKnownByItsBytes(t *testing.T) {
	f := moduleFile(t, "hello")
	want := Identity{"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", 5}
	for range 2 { // the offset is left alone
		if got, err := Identify(f); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestTheSizeOfCompiledCodeIsThatOfAllItsFiles(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "hello")
	for range 2 {
		a, err := get(t.Context(), c, f, leaving(t, func(dir string) error {
			for _, name := range []string{"one", "engine/two", "engine/three"} {
				path := filepath.Join(dir, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("1234567"), 0o600)); err != nil {
					return err
				}
			}
			return nil
		}))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		if a.Size != 21 {
			t.Errorf("got %d, want 21", a.Size)
		}
	}
}

func TestAnotherModuleOrEngineHasAnotherEntry(t *testing.T) {
	c := newTestCache(t)
	newer := NewCache(c.dir, "v9.9.9")
	var count atomic.Int32
	f := moduleFile(t, "one")
	for _, want := range []struct {
		cache *Cache
		file  *os.File
	}{{c, f}, {c, moduleFile(t, "two")}, {newer, f}} {
		a, err := get(t.Context(), want.cache, want.file, compiler(t, &count))
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		if a.Hit {
			t.Errorf("%s of %s was there already", want.file.Name(), want.cache.version)
		}
	}
}

func TestAnEntryIsRootsAndNobodyCanWriteToIt(t *testing.T) {
	c := newTestCache(t)
	var count atomic.Int32
	a, err := get(t.Context(), c, moduleFile(t, "module"), compiler(t, &count))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	want := map[string]uint32{".": unix.S_IFDIR | 0o555, "engine": unix.S_IFDIR | 0o555, "engine/code": unix.S_IFREG | 0o444}
	for path, mode := range want {
		info, err := os.Lstat(codeDir(a) + "/./" + path)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != 0 || st.Gid != 0 || st.Mode != mode {
			t.Errorf("%s: got %d:%d %#o, want 0:0 %#o", path, st.Uid, st.Gid, st.Mode, mode)
		}
	}
}

func TestAFailedCompilationLeavesNothingAndIsTriedAgain(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "module")
	failure := errors.New("no module")
	_, err := get(t.Context(), c, f, leaving(t, func(string) error { return failure }))
	if !errors.Is(err, failure) {
		t.Fatalf("got %v, want %v", err, failure)
	}
	assertEmpty(t, c)
	var count atomic.Int32
	a, err := get(t.Context(), c, f, compiler(t, &count))
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	if a.Hit {
		t.Error("a compilation that failed was a hit")
	}
}

func TestWhatIsNoPlainFileOfTheCompilersIsRefused(t *testing.T) {
	needRoot(t)
	for name, leave := range map[string]func(t *testing.T, dir, victim string) error{
		"a symbolic link to a file":      func(_ *testing.T, dir, victim string) error { return os.Symlink(victim, dir+"/code") },
		"a symbolic link to a directory": func(_ *testing.T, dir, victim string) error { return os.Symlink(filepath.Dir(victim), dir+"/code") },
		"a hard link":                    func(_ *testing.T, dir, victim string) error { return os.Link(victim, dir+"/code") },
		"a hard link in a directory": func(_ *testing.T, dir, victim string) error {
			return errors.Join(os.Mkdir(dir+"/engine", 0o700), os.Link(victim, dir+"/engine/code"))
		},
		"a FIFO":   func(_ *testing.T, dir, _ string) error { return unix.Mkfifo(dir+"/code", 0o600) },
		"a socket": func(_ *testing.T, dir, _ string) error { return unix.Mknod(dir+"/code", unix.S_IFSOCK|0o600, 0) },
		"a name with a line end": func(_ *testing.T, dir, _ string) error {
			return os.WriteFile(dir+"/a\n00000000 0 b", nil, 0o600)
		},
		"nothing": func(*testing.T, string, string) error { return nil },
		"many files": func(_ *testing.T, dir, _ string) (err error) {
			for i := range maxFiles + 1 {
				err = errors.Join(err, os.WriteFile(fmt.Sprintf("%s/%d", dir, i), nil, 0o600))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestCache(t)
			victim := filepath.Join(t.TempDir(), "victim")
			if err := os.WriteFile(victim, nil, 0o640); err != nil {
				t.Fatal(err)
			}
			a, err := get(t.Context(), c, moduleFile(t, "module"), leaving(t, func(dir string) error { return leave(t, dir, victim) }))
			if err == nil {
				a.Close()
				t.Fatal("got no error")
			}
			if !strings.Contains(err.Error(), "the compiler left") {
				t.Errorf("got %v: want what is wrong", err)
			}
			assertEmpty(t, c)
			info, err := os.Stat(victim)
			if err != nil {
				t.Fatal(err)
			}
			if st := info.Sys().(*syscall.Stat_t); st.Mode&0o7777 != 0o640 || st.Size != 0 {
				t.Errorf("the file it aimed at has become %#o, of %d bytes", st.Mode&0o7777, st.Size)
			}
		})
	}
}

func TestWaitingForAnotherCompilationEndsWithTheRequest(t *testing.T) {
	c := newTestCache(t)
	waits := 0
	c.Wait = func(ctx context.Context, wait func(context.Context) error) error {
		waits++
		return wait(ctx)
	}
	f := moduleFile(t, "module")
	compiling, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		a, err := get(t.Context(), c, f, func(ctx context.Context, f *os.File) (*os.File, error) {
			close(compiling)
			<-goOn
			return leavingFile(t, "compiled")(ctx, f)
		})
		if err != nil {
			t.Error(err)
			return
		}
		a.Close()
	})
	<-compiling
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := get(ctx, c, f, leaving(t, func(string) error {
			t.Error("compiled twice at the same time")
			return nil
		}))
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if waits != 1 {
		t.Errorf("told of %d waits, want 1", waits)
	}
	close(goOn)
	wg.Wait()
}

func TestTheBytesOfAModuleAreOpenedOnlyToBeCompiled(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "module")
	id, err := Identify(f)
	if err != nil {
		t.Fatal(err)
	}
	var opened []*os.File
	open := func(ctx context.Context) (*os.File, error) {
		f, err := reopen(f)(ctx)
		opened = append(opened, f)
		return f, err
	}
	failure := errors.New("no such layer")
	if _, err := c.Get(t.Context(), id, func(context.Context) (*os.File, error) { return nil, failure }, nil, ""); !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	assertEmpty(t, c)
	for range 2 {
		a, err := c.Get(t.Context(), id, open, compiler(t, new(atomic.Int32)), "")
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
	}
	if len(opened) != 1 {
		t.Fatalf("opened %d times, want 1", len(opened))
	}
	if err := opened[0].Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("what was opened is left open: %v", err)
	}
}

func TestADiscardedEntryIsCompiledAgain(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "module")
	var count atomic.Int32
	for range 2 {
		a, err := get(t.Context(), c, f, compiler(t, &count))
		if err != nil {
			t.Fatal(err)
		}
		other, err := get(t.Context(), c, f, compiler(t, &count))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := c.Discard(t.Context(), a, nil); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		// Who reads it goes on reading it.
		if got, err := os.ReadFile(codeDir(other) + "/engine/code"); err != nil || string(got) != "compiled" {
			t.Errorf("got %q, %v", got, err)
		}
		// What has taken its place stays.
		next, err := get(t.Context(), c, f, compiler(t, &count))
		if err != nil || next.Hit {
			t.Fatal("not compiled again", err)
		}
		if err := c.Discard(t.Context(), other, nil); err != nil {
			t.Fatal(err)
		}
		other.Close()
		if again, err := get(t.Context(), c, f, compiler(t, &count)); err != nil || !again.Hit {
			t.Error("the entry in its place was removed", err)
		} else {
			again.Close()
		}
		if err := c.Discard(t.Context(), next, nil); err != nil {
			t.Fatal(err)
		}
		next.Close()
		if err := sweep(t, c); err != nil {
			t.Fatal(err)
		}
		assertEmpty(t, c)
	}
	if got, want := count.Load(), int32(4); got != want {
		t.Errorf("compiled %d times, want %d", got, want)
	}
}

// spoiltDirs are what may be where the cache is to be.
var spoiltDirs = map[string]func(dir string) error{
	"mode 0755":           func(dir string) error { return os.Mkdir(dir, 0o755) },
	"mode 0701":           func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o701)) },
	"mode 0770":           func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o770)) },
	"another user's":      func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 7, 0)) },
	"a file":              func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
	"a dangling link":     func(dir string) error { return os.Symlink("nowhere", dir) },
	"a link to directory": func(dir string) error { return errors.Join(os.Mkdir(dir+".real", 0o700), os.Symlink(dir+".real", dir)) },
}

func TestWhereTheCacheIsOfNoUseAModuleIsCompiledForOneUse(t *testing.T) {
	needRoot(t)
	for name, prepare := range spoiltDirs {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			c := NewCache(filepath.Join(base, "cache"), "v1")
			if err := prepare(c.dir); err != nil {
				t.Fatal(err)
			}
			var told []Event
			c.Tell = func(_ context.Context, e Event) { told = append(told, e) }
			f := moduleFile(t, "module")
			id, err := Identify(f)
			if err != nil {
				t.Fatal(err)
			}
			var count atomic.Int32
			a, err := c.Get(t.Context(), id, reopen(f), compiler(t, &count), filepath.Join(base, "spare"))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(codeDir(a) + "/engine/code"); err != nil || string(got) != "compiled" || a.Hit || a.Size != 8 {
				t.Errorf("got %q, %v, %+v", got, err, a)
			}
			if len(told) != 1 || told[0].Kind != Unusable || !strings.Contains(told[0].Err.Error(), c.dir) {
				t.Errorf("told %+v", told)
			}
			if err := c.Discard(t.Context(), a, nil); err != nil {
				t.Error(err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(filepath.Join(base, "spare")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what was for one use is still there: %v", err)
			}
		})
	}
}

func TestACacheIsMadeWhereThereIsNone(t *testing.T) {
	needRoot(t)
	c := NewCache(filepath.Join(t.TempDir(), "a/b/cache"), "v1")
	if all, err := c.List(); err != nil || len(all) != 0 {
		t.Errorf("got %v, %v, want nothing", all, err)
	}
	a, err := get(t.Context(), c, moduleFile(t, "module"), leavingFile(t, "x"))
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	info, err := os.Stat(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Mode().Perm(), fs.FileMode(0o700); got != want {
		t.Errorf("got mode %v, want %v", got, want)
	}
}

func TestTheNameOfAnEntryTellsWhatTheCodeDependsOn(t *testing.T) {
	c := NewCache("/cache", "v1.2.3")
	if name := c.entry("sha256:abc"); !strings.HasPrefix(name, "abc-v1.2.3-") {
		t.Errorf("got %s, want digest, version and processor", name)
	}
}
