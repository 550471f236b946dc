package module

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// A Cache keeps compiled modules in a directory that belongs to root alone:
//
//	DIGEST-VERSION-PROCESSOR/        one entry; its name says all that it depends on
//	DIGEST-VERSION-PROCESSOR/sums    what is below code; its time is that of the last use
//	DIGEST-VERSION-PROCESSOR/code/   what the engine is given, read-only
//	DIGEST-VERSION-PROCESSOR.lock    locked by who compiles that module
//	new-*, old-*                     entries on their way in and out; or left by a crash
//
// The engine executes entries as they are. So none is ever written by a process
// that has seen a module's bytes: what such a process has left, the cache copies when the
// process is gone. And each is read, and compared with its sums, for every use: [Artifact.Verify].
//
// Three locks of flock(2), which end with their holders: the directory's, for renaming in
// it; the one of a module that is compiled; and that of the sums of an entry, which whoever
// reads the entry shares. They are taken in the order of the second, the first, the third.
type Cache struct {
	// Wait, unless nil, is called for every wait for somebody else who compiles the
	// same module, to call wait.
	Wait func(ctx context.Context, wait func(context.Context) error) error
	// Tell, unless nil, is told what happens to entries.
	Tell func(ctx context.Context, e Event)
	// Limits, unless nil, are asked for when there is one entry more.
	Limits func() Limits

	dir     string
	version string
}

// CompilerUser is who a compiler runs as: nobody, by the number every Linux
// distribution uses.
const CompilerUser = 65534

// An Event is something that happens to an entry.
type Event struct {
	Kind  EventKind
	Entry string // its name
	Size  int64  // bytes; of what is evicted
	Err   error  // the reason
}

// EventKind is what happens to an entry.
type EventKind int

const (
	// Corrupt says that an entry was not what had been written, and is removed.
	Corrupt EventKind = iota
	// Evicted says that an entry was removed to make room.
	Evicted
	// Unusable says that an entry could not be read or written, and the module was
	// compiled for one use.
	Unusable
)

// NewCache is the cache in dir, which is made when it is needed. Version is the engine's:
// entries of another one are never found.
func NewCache(dir, version string) *Cache { return &Cache{dir: dir, version: version} }

func (c *Cache) limits() (l Limits) {
	if c.Limits != nil {
		l = c.Limits()
	}
	return l
}

func (c *Cache) tell(ctx context.Context, e Event) {
	if c.Tell != nil {
		c.Tell(ctx, e)
	}
}

// open opens the directory of the cache.
//
// A directory that anybody but root could write to is an error.
func (c *Cache) open() (*os.File, error) {
	fd, err := unix.Open(c.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return nil, fmt.Errorf("compile cache: %w", err)
		}
		fd, err = unix.Open(c.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("compile cache %s: not a directory", c.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("compile cache %s: %w", c.dir, err)
	}
	dir := os.NewFile(uintptr(fd), c.dir)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Uid != 0 || st.Mode&0o077 != 0) {
		err = fmt.Errorf("owned by uid %d with mode %#o: only root may have access", st.Uid, st.Mode&0o7777)
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("compile cache %s: %w", c.dir, err)
	}
	return dir, nil
}

// An Opener opens the bytes of a module. Where they have to be fetched first, that is
// when.
type Opener func(ctx context.Context) (*os.File, error)

// A Compiler compiles the module f. It returns a directory with the result. By then
// nothing that has read the module runs any more.
type Compiler func(ctx context.Context, f *os.File) (*os.File, error)

// An Identity says which module it is.
type Identity struct {
	Digest string // "sha256:" and 64 hexadecimal digits
	Size   int64  // bytes
}

// Identify reads the module f, to its end. It leaves the offset of f alone.
func Identify(f *os.File) (Identity, error) {
	info, err := f.Stat()
	if err != nil {
		return Identity{}, err
	}
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return Identity{}, fmt.Errorf("read module: %w", err)
	}
	return Identity{"sha256:" + hex.EncodeToString(h.Sum(nil)), n}, nil
}

// An Artifact is a compiled module. While it is open nobody removes it.
type Artifact struct {
	Hit  bool     // it was there already
	Dir  *os.File // what the engine is given
	Size int64    // of the files in Dir, bytes

	entry string
	files []sum
	sums  *os.File // nil for one that is not of the cache
	spare string   // where that is; removed by Close
}

// Close lets go of the artifact.
func (a *Artifact) Close() error {
	a.Dir.Close()
	if a.sums == nil {
		return os.RemoveAll(a.spare)
	}
	return a.sums.Close()
}

// An unusableError says that an entry can be neither read nor written.
type unusableError struct{ error }

func (e unusableError) Unwrap() error { return e.error }

// Get returns what the module id was compiled to, and compiles it when the cache has
// no entry for it: once, however many ask at the same time, in this process or others.
// Only then it calls open, and closes what that returns. Somebody who waits while another
// compiles does so in its place when that one fails or gives up.
//
// Where the cache cannot be used the module is compiled into spare, a directory that is
// not there yet, for this one use.
func (c *Cache) Get(ctx context.Context, id Identity, open Opener, compile Compiler, spare string) (*Artifact, error) {
	entry := c.entry(id.Digest)
	compiled := (*os.File)(nil)
	once := func(ctx context.Context) (_ *os.File, err error) {
		if compiled == nil {
			compiled, err = c.compile(ctx, open, compile)
		}
		return compiled, err
	}
	defer func() {
		if compiled != nil {
			compiled.Close()
		}
	}()
	a, err := c.get(ctx, entry, once)
	if unusable := (unusableError{}); !errors.As(err, &unusable) {
		return a, err
	}
	c.tell(ctx, Event{Kind: Unusable, Entry: entry, Err: err})
	if _, err := once(ctx); err != nil {
		return nil, err
	}
	return placeSpare(compiled, spare)
}

func (c *Cache) compile(ctx context.Context, open Opener, compile Compiler) (*os.File, error) {
	f, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return compile(ctx, f)
}

// get is Get where the cache can be used.
func (c *Cache) get(ctx context.Context, entry string, compile func(context.Context) (*os.File, error)) (*Artifact, error) {
	dir, err := c.open()
	if err != nil {
		return nil, unusableError{err}
	}
	defer dir.Close()
	a, broken := find(dir, entry)
	if a != nil {
		return a, nil
	}
	// What is broken is compiled anew by one of those who see it.
	unlock, err := c.lock(ctx, entry)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if a, broken = find(dir, entry); a != nil {
		return a, nil
	}
	if broken != nil {
		c.tell(ctx, Event{Kind: Corrupt, Entry: entry, Err: broken})
	}
	compiled, err := compile(ctx)
	if err != nil {
		return nil, err
	}
	return c.place(ctx, dir, entry, compiled)
}

// GetVerified is Get, and looks at what it has found; what is not whole is discarded.
func (c *Cache) GetVerified(ctx context.Context, id Identity, open Opener, compile Compiler, spare string) (*Artifact, error) {
	for {
		a, err := c.Get(ctx, id, open, compile, spare)
		if err != nil {
			return nil, err
		}
		if err = a.Verify(); err == nil {
			return a, nil
		}
		err = c.Discard(ctx, a, err)
		a.Close()
		if err != nil {
			return nil, err
		}
	}
}

// Discard removes the entry that a is: it was found to be of no use, for the given reason.
// One that has been made in its place meanwhile stays.
func (c *Cache) Discard(ctx context.Context, a *Artifact, why error) error {
	if a.sums == nil {
		return nil
	}
	dir, err := c.open()
	if err != nil {
		return err
	}
	defer dir.Close()
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	mine, err := a.sums.Stat()
	if err != nil {
		return fmt.Errorf("compile cache: %w", err)
	}
	named, err := os.Lstat(filepath.Join(c.dir, a.entry, sumsName))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(mine, named) {
		return nil
	}
	// Others may be reading it: it is removed by whoever comes after them.
	if _, err = moveOut(dir, a.entry); err != nil {
		return fmt.Errorf("compile cache: %w", err)
	}
	c.tell(ctx, Event{Kind: Corrupt, Entry: a.entry, Err: why})
	return nil
}

// entry is the name of the entry of a module. It says all that the compiled code
// depends on, the processor's features included, since an engine that does not
// find its own key there would compile anew, and fail.
func (c *Cache) entry(digest string) string {
	features := sha256.Sum256(fmt.Appendf(nil, "%s %+v %+v", runtime.GOARCH, cpu.X86, cpu.ARM64))
	return fmt.Sprintf("%s-%s-%x", strings.TrimPrefix(digest, "sha256:"), c.version, features[:6])
}

// lockSuffix is what a lock's name has after that of its entry.
const lockSuffix = ".lock"

// lock locks an entry that is to be made.
func (c *Cache) lock(ctx context.Context, entry string) (unlock func(), err error) {
	path := filepath.Join(c.dir, entry+lockSuffix)
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, unusableError{fmt.Errorf("compile cache: %w", err)}
		}
		if err := tryLock(f); errors.Is(err, unix.EWOULDBLOCK) {
			err = c.wait(ctx, f)
			if err != nil {
				f.Close()
				return nil, err
			}
		} else if err != nil {
			f.Close()
			return nil, unusableError{fmt.Errorf("compile cache: lock %s: %w", path, err)}
		}
		// Whoever had the lock may have removed the file: then this lock is on
		// a file that nobody else will find.
		if isNamed(f, path) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

// isNamed tells whether f is what path names.
func isNamed(f *os.File, path string) bool {
	mine, err1 := f.Stat()
	named, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(mine, named)
}

func tryLock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// wait waits for somebody else who compiles the same module.
func (c *Cache) wait(ctx context.Context, f *os.File) error {
	wait := func(ctx context.Context) error { return waitLock(ctx, f, "wait for another compilation") }
	if c.Wait == nil {
		return wait(ctx)
	}
	return c.Wait(ctx, wait)
}

// waitLock tries to take a lock until it can be had, or ctx is done.
func waitLock(ctx context.Context, f *os.File, what string) error {
	for { // waiting in flock(2) would outlive a cancelled request
		if err := tryLock(f); err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
	}
}

// lockDir locks the directory, for as long as it takes to rename something in it.
func lockDir(ctx context.Context, dir *os.File) (unlock func(), err error) {
	if err := waitLock(ctx, dir, "wait for the compile cache"); err != nil {
		return nil, err
	}
	return func() { _ = unix.Flock(int(dir.Fd()), unix.LOCK_UN) }, nil // fails for no lock only
}
