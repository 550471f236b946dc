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
	"syscall"
	"time"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// A Cache keeps compiled modules in a directory that belongs to root alone. An
// entry is a directory with what the engine wrote for one module.
//
// The engine executes entries as they are. So none is ever written by a process
// that has seen a module's bytes: such a process fills a directory of its own,
// which the cache takes over when the process is gone.
type Cache struct {
	// Wait, unless nil, is called for every wait for somebody else who compiles the
	// same module, to call wait.
	Wait func(ctx context.Context, wait func(context.Context) error) error

	dir     string
	version string
}

// CompilerUser owns a directory while the compiler fills it: nobody, by the
// number every Linux distribution uses.
const CompilerUser = 65534

// NewCache opens or makes the cache in dir. Version is the engine's: entries of
// another one are never found.
//
// A directory that anybody but root could write to is an error.
func NewCache(dir, version string) (*Cache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("module cache: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, fmt.Errorf("module cache %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, fmt.Errorf("module cache %s: not a directory", dir)
	case st.Uid != 0 || st.Mode&0o077 != 0:
		return nil, fmt.Errorf("module cache %s: owned by uid %d with mode %#o: only root may have access", dir, st.Uid, st.Mode&0o7777)
	}
	return &Cache{dir: dir, version: version}, nil
}

// An Opener opens the bytes of a module. Where they have to be fetched first, that is
// when.
type Opener func(ctx context.Context) (*os.File, error)

// A Compiler compiles the module f into the empty directory dir. When it
// returns, nothing that has read the module runs any more.
type Compiler func(ctx context.Context, f *os.File, dir *os.File) error

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

// An Artifact is a compiled module.
type Artifact struct {
	Hit bool // it was there already
	Dir *os.File
}

// Size is the length of the compiled code, bytes.
func (a *Artifact) Size() (size int64, err error) {
	err = fs.WalkDir(os.DirFS(a.Dir.Name()), ".", func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}

// Get returns what the module id was compiled to, and compiles it when the cache has
// no entry for it: once, however many ask at the same time, in this process or others.
// Only then it calls open, and closes what that returns. The caller closes Dir.
func (c *Cache) Get(ctx context.Context, id Identity, open Opener, compile Compiler) (*Artifact, error) {
	entry := c.entry(id.Digest)
	if a, err := find(entry); a != nil || err != nil {
		return a, err
	}
	unlock, err := c.lock(ctx, entry+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if a, err := find(entry); a != nil || err != nil {
		return a, err
	}
	f, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := c.fill(ctx, f, entry, compile); err != nil {
		return nil, err
	}
	dir, err := os.Open(entry)
	if err != nil {
		return nil, fmt.Errorf("module cache: %w", err)
	}
	return &Artifact{Dir: dir}, nil
}

// find is nil when there is no such entry.
func find(entry string) (*Artifact, error) {
	dir, err := os.Open(entry)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("module cache: %w", err)
	}
	return &Artifact{Hit: true, Dir: dir}, nil
}

// Drop removes the entry of the module with the given digest: it was found to be
// of no use.
func (c *Cache) Drop(digest string) error {
	if err := os.RemoveAll(c.entry(digest)); err != nil {
		return fmt.Errorf("module cache: %w", err)
	}
	return nil
}

// entry is the directory for a module. Its name says all that the compiled code
// depends on, the processor's features included, since an engine that does not
// find its own key there would compile anew, and fail.
func (c *Cache) entry(digest string) string {
	features := sha256.Sum256(fmt.Appendf(nil, "%s %+v %+v", runtime.GOARCH, cpu.X86, cpu.ARM64))
	return filepath.Join(c.dir, fmt.Sprintf("%s-%s-%x", strings.TrimPrefix(digest, "sha256:"), c.version, features[:6]))
}

// lock takes the lock file at path, which other processes may hold.
func (c *Cache) lock(ctx context.Context, path string) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("module cache: %w", err)
		}
		try := func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }
		if err = try(); errors.Is(err, unix.EWOULDBLOCK) {
			err = c.wait(ctx, try)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("module cache: lock %s: %w", path, err)
		}
		// Whoever had the lock may have removed the file: then this lock is on
		// a file that nobody else will find.
		mine, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
	}
}

// wait tries to take a lock until it can be had, or ctx is done.
func (c *Cache) wait(ctx context.Context, try func() error) error {
	wait := func(ctx context.Context) error {
		for { // waiting in flock(2) would outlive a cancelled request
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("wait for another compilation: %w", ctx.Err())
			}
			if err := try(); !errors.Is(err, unix.EWOULDBLOCK) {
				return err
			}
		}
	}
	if c.Wait == nil {
		return wait(ctx)
	}
	return c.Wait(ctx, wait)
}

// fill makes the entry. It appears whole or not at all.
func (c *Cache) fill(ctx context.Context, f *os.File, entry string, compile Compiler) (err error) {
	tmp, err := os.MkdirTemp(c.dir, "new-")
	if err != nil {
		return fmt.Errorf("module cache: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	if err := os.Chown(tmp, CompilerUser, CompilerUser); err != nil {
		return fmt.Errorf("module cache: %w", err)
	}
	dir, err := os.Open(tmp)
	if err != nil {
		return fmt.Errorf("module cache: %w", err)
	}
	defer dir.Close()
	if err := compile(ctx, f, dir); err != nil {
		return err
	}
	if err := takeOver(tmp); err != nil {
		return fmt.Errorf("module cache: %w", err)
	}
	if err := os.Rename(tmp, entry); err != nil {
		return fmt.Errorf("module cache: %w", err)
	}
	return nil
}

// takeOver gives what a compiler left in dir to root, readable by any user that
// gets to it. Anything but plain directories and files with one name is refused:
// whoever controlled the compiler could aim it elsewhere.
func takeOver(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o555)
		if !d.IsDir() {
			mode = 0o444
			if !info.Mode().IsRegular() || info.Sys().(*syscall.Stat_t).Nlink != 1 {
				return fmt.Errorf("compiler left %s: not a plain file", path)
			}
		}
		if err := root.Lchown(path, 0, 0); err != nil {
			return err
		}
		return root.Chmod(path, mode)
	})
}
