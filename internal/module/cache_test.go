package module

import (
	"context"
	"errors"
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
	c, err := NewCache(filepath.Join(t.TempDir(), "cache"), "v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	return c
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

// asCompilerUser gives what a compiler has made to the user it runs as.
func asCompilerUser(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, CompilerUser, CompilerUser)
	})
	if err != nil {
		t.Error(err)
	}
}

func compiler(t *testing.T, count *atomic.Int32) Compiler {
	return func(_ context.Context, _, dir *os.File) error {
		count.Add(1)
		if err := os.MkdirAll(filepath.Join(dir.Name(), "engine"), 0o700); err != nil {
			return err
		}
		err := os.WriteFile(filepath.Join(dir.Name(), "engine", "code"), []byte("compiled"), 0o600)
		asCompilerUser(t, dir.Name())
		return err
	}
}

// get is Get for a file of which nothing is known yet.
func get(ctx context.Context, c *Cache, f *os.File, compile Compiler) (*Artifact, error) {
	id, err := Identify(f)
	if err != nil {
		return nil, err
	}
	return c.Get(ctx, id, reopen(f), compile)
}

// reopen opens a file anew, since what is opened for Get is closed by it.
func reopen(f *os.File) Opener {
	return func(context.Context) (*os.File, error) { return os.Open(f.Name()) }
}

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
	other, err := NewCache(one.dir, one.version) // as another process would
	if err != nil {
		t.Fatal(err)
	}
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
			defer a.Dir.Close()
			if a.Hit {
				hits.Add(1)
			}
			if got, err := os.ReadFile(filepath.Join(a.Dir.Name(), "engine/code")); err != nil || string(got) != "compiled" {
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
	a, err := get(t.Context(), c, moduleFile(t, "hello"), func(_ context.Context, _, dir *os.File) error {
		for _, name := range []string{"one", "engine/two", "engine/three"} {
			path := filepath.Join(dir.Name(), name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("1234567"), 0o600)); err != nil {
				return err
			}
		}
		asCompilerUser(t, dir.Name())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Dir.Close()
	if got, err := a.Size(); err != nil || got != 21 {
		t.Errorf("got %d, %v, want 21", got, err)
	}
}

func TestAnotherModuleOrEngineHasAnotherEntry(t *testing.T) {
	c := newTestCache(t)
	newer, err := NewCache(c.dir, "v9.9.9")
	if err != nil {
		t.Fatal(err)
	}
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
		a.Dir.Close()
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
	defer a.Dir.Close()
	want := map[string]uint32{".": unix.S_IFDIR | 0o555, "engine": unix.S_IFDIR | 0o555, "engine/code": unix.S_IFREG | 0o444}
	for path, mode := range want {
		info, err := os.Lstat(filepath.Join(a.Dir.Name(), path))
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != 0 || st.Gid != 0 || st.Mode != mode {
			t.Errorf("%s: got %d:%d %#o, want 0:0 %#o", path, st.Uid, st.Gid, st.Mode, mode)
		}
	}
}

func TestTheCompilerGetsTheModuleAndAnEmptyDirectoryOfItsOwn(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "module")
	a, err := get(t.Context(), c, f, func(_ context.Context, m, dir *os.File) error {
		if m.Name() != f.Name() {
			t.Errorf("got %s, want %s", m.Name(), f.Name())
		}
		info, err := dir.Stat()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Uid != CompilerUser || st.Gid != CompilerUser || st.Mode&0o7777 != 0o700 {
			t.Errorf("got %d:%d %#o, want the compiler's own", st.Uid, st.Gid, st.Mode&0o7777)
		}
		names, err := dir.Readdirnames(-1)
		if len(names) > 0 {
			t.Errorf("got %v, want an empty directory", names)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a.Dir.Close()
}

func TestAFailedCompilationLeavesNothingAndIsTriedAgain(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "module")
	failure := errors.New("no module")
	_, err := get(t.Context(), c, f, func(_ context.Context, _, dir *os.File) error {
		if err := os.WriteFile(filepath.Join(dir.Name(), "half"), nil, 0o600); err != nil {
			t.Error(err)
		}
		return failure
	})
	if !errors.Is(err, failure) {
		t.Fatalf("got %v, want %v", err, failure)
	}
	assertEmpty(t, c)
	var count atomic.Int32
	a, err := get(t.Context(), c, f, compiler(t, &count))
	if err != nil {
		t.Fatal(err)
	}
	a.Dir.Close()
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
	} {
		t.Run(name, func(t *testing.T) {
			c := newTestCache(t)
			victim := filepath.Join(t.TempDir(), "victim")
			if err := os.WriteFile(victim, nil, 0o640); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(victim, 7, 7); err != nil {
				t.Fatal(err)
			}
			a, err := get(t.Context(), c, moduleFile(t, "module"), func(_ context.Context, _, dir *os.File) error {
				return leave(t, dir.Name(), victim)
			})
			if err == nil {
				a.Dir.Close()
				t.Fatal("got no error")
			}
			assertEmpty(t, c)
			info, err := os.Stat(victim)
			if err != nil {
				t.Fatal(err)
			}
			if st := info.Sys().(*syscall.Stat_t); st.Uid != 7 || st.Gid != 7 || st.Mode&0o7777 != 0o640 {
				t.Errorf("the file it aimed at has become %d:%d %#o", st.Uid, st.Gid, st.Mode&0o7777)
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
		a, err := get(t.Context(), c, f, func(context.Context, *os.File, *os.File) error {
			close(compiling)
			<-goOn
			return nil
		})
		if err != nil {
			t.Error(err)
			return
		}
		a.Dir.Close()
	})
	<-compiling
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := get(ctx, c, f, func(context.Context, *os.File, *os.File) error {
			t.Error("compiled twice at the same time")
			return nil
		})
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
	if _, err := c.Get(t.Context(), id, func(context.Context) (*os.File, error) { return nil, failure }, nil); !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	assertEmpty(t, c)
	for range 2 {
		a, err := c.Get(t.Context(), id, open, compiler(t, new(atomic.Int32)))
		if err != nil {
			t.Fatal(err)
		}
		a.Dir.Close()
	}
	if len(opened) != 1 {
		t.Fatalf("opened %d times, want 1", len(opened))
	}
	if err := opened[0].Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("what was opened is left open: %v", err)
	}
}

func TestADroppedEntryIsCompiledAgain(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "module")
	id, err := Identify(f)
	if err != nil {
		t.Fatal(err)
	}
	var count atomic.Int32
	for range 2 {
		a, err := c.Get(t.Context(), id, reopen(f), compiler(t, &count))
		if err != nil {
			t.Fatal(err)
		}
		a.Dir.Close()
		if err := c.Drop(id.Digest); err != nil {
			t.Fatal(err)
		}
		assertEmpty(t, c)
		if err := c.Drop(id.Digest); err != nil {
			t.Errorf("to drop what is not there: %v", err)
		}
	}
	if got, want := count.Load(), int32(2); got != want {
		t.Errorf("compiled %d times, want %d", got, want)
	}
}

func TestACacheThatOthersGetAtIsRefused(t *testing.T) {
	needRoot(t)
	for name, prepare := range map[string]func(dir string) error{
		"mode 0755":           func(dir string) error { return os.Mkdir(dir, 0o755) },
		"mode 0701":           func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o701)) },
		"mode 0770":           func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o770)) },
		"another user's":      func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 7, 0)) },
		"a file":              func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"a dangling link":     func(dir string) error { return os.Symlink("nowhere", dir) },
		"a link to directory": func(dir string) error { return errors.Join(os.Mkdir(dir+".real", 0o700), os.Symlink(dir+".real", dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := NewCache(dir, "v1"); err == nil {
				t.Error("got no error")
			}
		})
	}
}

func TestACacheIsMadeWhereThereIsNone(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "a/b/cache")
	for range 2 {
		if _, err := NewCache(dir, "v1"); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Mode().Perm(), fs.FileMode(0o700); got != want {
		t.Errorf("got mode %v, want %v", got, want)
	}
}

func TestTheNameOfAnEntryTellsWhatTheCodeDependsOn(t *testing.T) {
	c := &Cache{dir: "/cache", version: "v1.2.3"}
	name := filepath.Base(c.entry("sha256:abc"))
	if !strings.HasPrefix(name, "abc-v1.2.3-") || filepath.Dir(c.entry("sha256:abc")) != "/cache" {
		t.Errorf("got %s, want digest, version and processor", name)
	}
}
