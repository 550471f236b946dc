package module

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// filled has the entry of a module in the cache, and returns its directory.
func filled(t *testing.T, c *Cache, module, code string) string {
	t.Helper()
	a, err := get(t.Context(), c, moduleFile(t, module), leavingFile(t, code))
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	return filepath.Join(c.dir, a.entry)
}

// age has an entry not used for a while.
func age(t *testing.T, entry string, d time.Duration) {
	t.Helper()
	at := time.Now().Add(-d)
	if err := os.Chtimes(filepath.Join(entry, sumsName), at, at); err != nil {
		t.Fatal(err)
	}
}

func limited(l Limits) func() Limits { return func() Limits { return l } }

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// flipped is a file with one bit the other way.
func flipped(path string, bit int) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	data[bit/8] ^= 1 << (bit % 8)
	return os.WriteFile(path, data, 0o444)
}

// spoilt are ways in which an entry is not what was written.
var spoilt = map[string]func(entry string) error{
	"code cut off":        func(e string) error { return os.Truncate(e+"/code/engine/code", 3) },
	"code empty":          func(e string) error { return os.Truncate(e+"/code/engine/code", 0) },
	"code longer":         func(e string) error { return os.Truncate(e+"/code/engine/code", 9) },
	"code gone":           func(e string) error { return os.Remove(e + "/code/engine/code") },
	"code another user's": func(e string) error { return os.Chown(e+"/code/engine/code", 7, 7) },
	"code writable":       func(e string) error { return os.Chmod(e+"/code/engine/code", 0o666) },
	"code a link": func(e string) error {
		return errors.Join(os.Rename(e+"/code/engine/code", e+"/elsewhere"), os.Symlink(e+"/elsewhere", e+"/code/engine/code"))
	},
	"code a directory": func(e string) error {
		return errors.Join(os.Remove(e+"/code/engine/code"), os.Mkdir(e+"/code/engine/code", 0o755))
	},
	"code a FIFO": func(e string) error {
		return errors.Join(os.Remove(e+"/code/engine/code"), unix.Mkfifo(e+"/code/engine/code", 0o444))
	},
	"directory of code gone":           func(e string) error { return os.RemoveAll(e + "/code") },
	"directory of code another user's": func(e string) error { return os.Chown(e+"/code", 7, 7) },
	"directory of code a link": func(e string) error {
		return errors.Join(os.Rename(e+"/code", e+"/real"), os.Symlink("real", e+"/code"))
	},
	"directory of code a file": func(e string) error {
		return errors.Join(os.RemoveAll(e+"/code"), os.WriteFile(e+"/code", nil, 0o444))
	},
	"sums gone":           func(e string) error { return os.Remove(e + "/sums") },
	"sums empty":          func(e string) error { return os.Truncate(e+"/sums", 0) },
	"sums cut off":        func(e string) error { return os.Truncate(e+"/sums", 100) },
	"sums another user's": func(e string) error { return os.Chown(e+"/sums", 7, 7) },
	"sums a directory": func(e string) error {
		return errors.Join(os.Remove(e+"/sums"), os.Mkdir(e+"/sums", 0o755))
	},
	"sums a link": func(e string) error {
		return errors.Join(os.Rename(e+"/sums", e+"/real"), os.Symlink("real", e+"/sums"))
	},
	"sums a FIFO": func(e string) error { return errors.Join(os.Remove(e+"/sums"), unix.Mkfifo(e+"/sums", 0o444)) },
	"the entry a link": func(e string) error {
		return errors.Join(os.Rename(e, e+"-real"), os.Symlink(e+"-real", e))
	},
	"the entry a file":            func(e string) error { return errors.Join(os.RemoveAll(e), os.WriteFile(e, nil, 0o444)) },
	"the entry an empty one":      func(e string) error { return errors.Join(os.RemoveAll(e), os.Mkdir(e, 0o700)) },
	"the entry of another module": func(e string) error { return swapped(e) },
}

// swapped has another entry in its place, which is whole.
func swapped(entry string) error {
	others, err := filepath.Glob(filepath.Join(filepath.Dir(entry), "*-v1.2.3-*"))
	for _, o := range others {
		if o != entry {
			return errors.Join(err, os.RemoveAll(entry), os.Rename(o, entry))
		}
	}
	return errors.Join(err, errors.New("no other entry"))
}

func TestAnEntryThatIsNotWhatWasWrittenIsReplaced(t *testing.T) {
	needRoot(t)
	for name, spoil := range spoilt {
		t.Run(name, func(t *testing.T) { checkReplaced(t, spoil) })
	}
	for _, bit := range []int{0, 7, 23, 63} {
		t.Run(fmt.Sprintf("bit %d of the code", bit), func(t *testing.T) {
			checkReplaced(t, func(e string) error { return flipped(e+"/code/engine/code", bit) })
		})
	}
}

func TestNoBitOfTheSumsCanBeAnother(t *testing.T) {
	c := newTestCache(t)
	entry := filled(t, c, "module", "compiled")
	data, err := os.ReadFile(entry + "/sums")
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(data) {
		other := bytes.Clone(data)
		other[bit/8] ^= 1 << (bit % 8)
		if sums, err := decodeSums(filepath.Base(entry), other); err == nil {
			t.Fatalf("bit %d: got %v, want an error", bit, sums)
		}
	}
}

// checkReplaced looks what becomes of an entry that is not what it was.
func checkReplaced(t *testing.T, spoil func(entry string) error) {
	t.Helper()
	c := newTestCache(t)
	filled(t, c, "another", "different")
	entry := filled(t, c, "module", "compiled")
	if err := spoil(entry); err != nil {
		t.Fatal(err)
	}
	var told []Event
	c.Tell = func(_ context.Context, e Event) { told = append(told, e) }
	var count atomic.Int32
	for _, hit := range []bool{false, true} {
		a, err := get(t.Context(), c, moduleFile(t, "module"), compiler(t, &count))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(codeDir(a) + "/engine/code"); a.Hit != hit || err != nil || string(got) != "compiled" {
			t.Errorf("hit %t, %q, %v: want %t", a.Hit, got, err, hit)
		}
		a.Close()
	}
	if len(told) != 1 || told[0].Kind != Corrupt || told[0].Err == nil || told[0].Entry != filepath.Base(entry) {
		t.Errorf("told %+v, want once that it was corrupt", told)
	}
	if err := sweep(t, c); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(c.dir + "/old-*"); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestWhatWasNotUsedForLongestGoesFirst(t *testing.T) {
	c := newTestCache(t)
	c.Limits = limited(Limits{Entries: 3})
	var evicted []string
	c.Tell = func(_ context.Context, e Event) { evicted = append(evicted, e.Entry) }
	one, two, three := filled(t, c, "one", "1"), filled(t, c, "two", "2"), filled(t, c, "three", "3")
	for i, e := range []string{one, two, three} {
		age(t, e, time.Duration(3-i)*time.Hour)
	}
	filled(t, c, "one", "1") // is used, and not made
	four := filled(t, c, "four", "4")
	if !exists(one) || exists(two) || !exists(three) || !exists(four) {
		t.Errorf("there are %t %t %t %t", exists(one), exists(two), exists(three), exists(four))
	}
	if len(evicted) != 1 || evicted[0] != filepath.Base(two) {
		t.Errorf("told of %v", evicted)
	}
}

func TestTheSizeOfTheCacheIsBounded(t *testing.T) {
	c := newTestCache(t)
	const size = 100 << 10
	c.Limits = limited(Limits{Size: 5 * (size + 4*block)})
	for i := range 12 {
		age(t, filled(t, c, fmt.Sprint(i), strings.Repeat("x", size)), time.Duration(20-i)*time.Minute)
	}
	all, err := c.List()
	if err != nil || len(all) != 5 {
		t.Fatalf("%d entries, %v, want 5", len(all), err)
	}
	for _, e := range all {
		if e.Size < size || e.Size > size+4*block || !e.Current || e.Engine != "v1.2.3" {
			t.Errorf("got %+v", e)
		}
	}
}

func TestAnEntryInUseIsNotEvicted(t *testing.T) {
	c := newTestCache(t)
	c.Limits = limited(Limits{Entries: 1})
	a, err := get(t.Context(), c, moduleFile(t, "one"), leavingFile(t, "1"))
	if err != nil {
		t.Fatal(err)
	}
	age(t, filepath.Join(c.dir, a.entry), time.Hour)
	filled(t, c, "two", "2")
	if got, err := os.ReadFile(codeDir(a) + "/engine/code"); err != nil || string(got) != "1" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, busy, err := c.Clear(t.Context(), func(EntryInfo) bool { return false }); err != nil || len(busy) != 1 || busy[0].Name != a.entry {
		t.Errorf("cleared but for %v, %v", busy, err)
	}
	a.Close()
	if _, busy, err := c.Clear(t.Context(), func(EntryInfo) bool { return false }); err != nil || len(busy) != 0 {
		t.Errorf("cleared but for %v, %v", busy, err)
	}
	assertEmpty(t, c)
}

// Who has found an entry can read all of it, whatever happens meanwhile.
func TestEntriesAreReadWhileOthersAreEvicted(t *testing.T) {
	c := newTestCache(t)
	c.Limits = limited(Limits{Entries: 2})
	var count atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		mine := NewCache(c.dir, c.version)
		mine.Limits = c.Limits
		f := moduleFile(t, fmt.Sprint(i%4))
		wg.Go(func() {
			for range 30 {
				a, err := get(t.Context(), mine, f, compiler(t, &count))
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := os.ReadFile(codeDir(a) + "/engine/code"); err != nil || string(got) != "compiled" {
					t.Errorf("got %q, %v", got, err)
				}
				a.Close()
			}
		})
	}
	wg.Wait()
	if count.Load() < 4 {
		t.Errorf("compiled %d times", count.Load())
	}
	if err := sweep(t, c); err != nil {
		t.Fatal(err)
	}
	if all, err := os.ReadDir(c.dir); err != nil || len(all) > 3 { // one in use may have been spared
		t.Errorf("left %v, %v", all, err)
	}
}

func TestWhatACrashLeavesIsRemovedByTheNextWhoCompiles(t *testing.T) {
	c := newTestCache(t)
	entry := filled(t, c, "module", "compiled")
	for _, name := range []string{"new-1/code/engine", "old-2/code", filepath.Base(entry) + ".lock/x"} {
		if err := os.MkdirAll(filepath.Join(c.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"new-1/code/engine/half", "old-2/sums", "abc-v1-x.lock", "new-file"} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// One that lives.
	_, held, err := c.makeNew(t.Context(), mustOpen(t, c))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	filled(t, c, "another", "x")
	names, err := os.ReadDir(c.dir)
	if err != nil || len(names) != 3 {
		t.Errorf("left %v, %v, want two entries and one to be", names, err)
	}
	if !exists(held.Name()) {
		t.Error("what somebody makes was removed")
	}
}

func mustOpen(t *testing.T, c *Cache) *os.File {
	t.Helper()
	dir, err := c.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// small is a cache on a file system of the given size.
func small(t *testing.T, size string) *Cache {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := NewCache(dir, "v1.2.3")
	c.Limits = limited(Limits{Size: 1 << 30})
	return c
}

func TestAFullDiskHasOldEntriesRemovedAndElseTheModuleIsCompiledForOneUse(t *testing.T) {
	c := small(t, "256k")
	first := filled(t, c, "one", strings.Repeat("x", 100<<10))
	age(t, first, time.Hour)
	var told []Event
	c.Tell = func(_ context.Context, e Event) { told = append(told, e) }
	second := filled(t, c, "two", strings.Repeat("x", 200<<10))
	if exists(first) || !exists(second) || len(told) != 1 || told[0].Kind != Evicted {
		t.Errorf("first %t, second %t, told %+v", exists(first), exists(second), told)
	}
	told = nil
	f := moduleFile(t, "three")
	id, err := Identify(f)
	if err != nil {
		t.Fatal(err)
	}
	spare := filepath.Join(t.TempDir(), "spare")
	var count atomic.Int32
	a, err := c.Get(t.Context(), id, reopen(f), func(ctx context.Context, f *os.File) (*os.File, error) {
		count.Add(1)
		return leavingFile(t, strings.Repeat("x", 500<<10))(ctx, f)
	}, spare)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if a.Hit || a.Size != 500<<10 || !exists(spare+"/engine/code") || count.Load() != 1 {
		t.Errorf("got %+v, compiled %d times", a, count.Load())
	}
	if len(told) != 2 || told[1].Kind != Unusable || !errors.Is(told[1].Err, unix.ENOSPC) {
		t.Errorf("told %+v", told)
	}
	for _, pattern := range []string{"/new-*", "/old-*", "/*.lock"} {
		if left, err := filepath.Glob(c.dir + pattern); err != nil || len(left) > 0 {
			t.Errorf("left %v, %v", left, err)
		}
	}
}

func TestAReadOnlyCacheIsReadAndNoMore(t *testing.T) {
	c := small(t, "1m")
	filled(t, c, "one", "compiled")
	if err := unix.Mount("", c.dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	var told []Event
	c.Tell = func(_ context.Context, e Event) { told = append(told, e) }
	a, err := get(t.Context(), c, moduleFile(t, "one"), nil)
	if err != nil || !a.Hit {
		t.Fatalf("got %+v, %v", a, err)
	}
	a.Close()
	f := moduleFile(t, "two")
	id, err := Identify(f)
	if err != nil {
		t.Fatal(err)
	}
	if a, err = c.Get(t.Context(), id, reopen(f), leavingFile(t, "compiled"), filepath.Join(t.TempDir(), "spare")); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if len(told) != 1 || told[0].Kind != Unusable || !errors.Is(told[0].Err, unix.EROFS) {
		t.Errorf("told %+v", told)
	}
}

// One gives up, another takes over.
func TestACompilationThatIsGivenUpIsTakenOverByWhoWaits(t *testing.T) {
	c := newTestCache(t)
	f := moduleFile(t, "module")
	ctx, cancel := context.WithCancelCause(t.Context())
	compiling := make(chan struct{})
	gaveUp := errors.New("gave up")
	first := make(chan error)
	go func() {
		_, err := get(ctx, c, f, func(ctx context.Context, _ *os.File) (*os.File, error) {
			close(compiling)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		first <- err
	}()
	<-compiling
	waiting := make(chan struct{}, 4)
	c.Wait = func(ctx context.Context, wait func(context.Context) error) error {
		select {
		case waiting <- struct{}{}:
		default: // it waits again: another was faster
		}
		return wait(ctx)
	}
	var count atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			a, err := get(t.Context(), c, f, compiler(t, &count))
			if err != nil {
				t.Error(err)
				return
			}
			a.Close()
		})
	}
	for range 4 {
		<-waiting
	}
	cancel(gaveUp)
	if err := <-first; !errors.Is(err, gaveUp) {
		t.Errorf("got %v", err)
	}
	wg.Wait()
	if count.Load() != 1 {
		t.Errorf("compiled %d times by the others, want once", count.Load())
	}
}

func TestAnEntryThatIsGoneIsNotOneThatIsBroken(t *testing.T) {
	c := newTestCache(t)
	if a, err := find(mustOpen(t, c), "none"); a != nil || err != nil {
		t.Errorf("got %v, %v", a, err)
	}
	if err := os.Mkdir(c.dir+"/empty", 0o700); err != nil {
		t.Fatal(err)
	}
	if a, err := find(mustOpen(t, c), "empty"); a != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, %v", a, err)
	}
}

func BenchmarkVerify(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	for _, size := range []int{4 << 10, 1 << 20, 10 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			dir := b.TempDir()
			from := filepath.Join(dir, "from")
			if err := errors.Join(os.Mkdir(from, 0o700), os.WriteFile(from+"/code", bytes.Repeat([]byte("12345678"), size/8), 0o600)); err != nil {
				b.Fatal(err)
			}
			f, err := os.Open(from)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			sums, err := copyOut(f, filepath.Join(dir, "to"))
			if err != nil {
				b.Fatal(err)
			}
			code, err := os.Open(filepath.Join(dir, "to"))
			if err != nil {
				b.Fatal(err)
			}
			defer code.Close()
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := verify(code, sums); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// sweep removes what was left by processes that are gone, and no entry.
func sweep(t *testing.T, c *Cache) error {
	t.Helper()
	_, _, err := c.Clear(t.Context(), func(EntryInfo) bool { return true })
	return err
}
